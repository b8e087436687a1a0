#!/bin/sh
# A merge in one process on a machine of Hugging Face Jobs: sh deploy/hf-job.sh
# A second attempt goes on from the receipts in OUT: it pays for the shards that were being written. An attempt that
# ends with 2 to 6 (recipe, inputs, damage, another plan's output, no space) would end alike again, but Jobs looks at no
# exit code, so the number of attempts is small.
set -eu
OUT=${OUT:-s3://merges/math-code-8b}
RECIPE=${RECIPE:-'
  merge_method: cabs
  base_model: hf://example/base-8b
  models:
    - {model: hf://example/math-8b, parameters: {weight: 1.2}}
    - {model: hf://example/code-8b, parameters: {weight: 1.2}}
  parameters: {density: 0.25}
'}

# The values of secrets are read from the environment of this command and are not shown.
exec hf jobs run "$@" --name anabranch-merge --flavor cpu-performance --timeout 6h --attempts 3 --detach \
  --secrets HF_TOKEN --secrets AWS_ACCESS_KEY_ID --secrets AWS_SECRET_ACCESS_KEY \
  --env OUT="$OUT" --env RECIPE="$RECIPE" \
  registry.example.com/anabranch:0.1.0 \
  sh -c 'printf "%s" "$RECIPE" > recipe.yml && exec anabranch merge recipe.yml "$OUT" --memory 8GiB --workers 8'
