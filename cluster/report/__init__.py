"""Reports: pages and pictures of what a finished output, a survey or a comparison holds; no merge needs them."""
