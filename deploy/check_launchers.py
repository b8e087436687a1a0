"""Have each platform's own parser read its file of this folder: `make deploy-check`.

Run by the Python of an environment that holds `check-requirements.txt`. Ends with the parser's error where a file is
not what the platform takes, such as a key that it does not know.
"""

from __future__ import annotations

from pathlib import Path

import anyscale.job.models
import google.cloud.batch_v1
import sky
import yaml

DEPLOY = Path(__file__).resolve().parent


def main() -> None:
    """Parse every file, or raise what its parser raises."""
    sky.Task.from_yaml_config(yaml.safe_load((DEPLOY / "skypilot.yaml").read_text()))
    print("skypilot.yaml: a task of SkyPilot", sky.__version__)
    google.cloud.batch_v1.Job.from_json((DEPLOY / "gcp-batch.json").read_text())
    print("gcp-batch.json: a job of Google Cloud Batch")
    job = anyscale.job.models.JobConfig.from_yaml(str(DEPLOY / "anyscale-job.yaml"))
    print("anyscale-job.yaml: a job of Anyscale,", job.max_retries, "retries")


if __name__ == "__main__":
    main()
