#!/usr/bin/env bash
# Do the committed reports of the tiny profile still hold? Runs the study again, from nothing, in a temporary worktree of the
# tree as it stands; then executes the committed notebooks on those results, where nbval compares the tables they claim.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"; git -C "$PWD" worktree prune' EXIT
trap 'exit 130' INT TERM

# A commit of all that git does not ignore, made through an index of its own: neither the branch nor the real index moves.
GIT_INDEX_FILE=$temporary/index git add --all
tree=$(GIT_INDEX_FILE=$temporary/index git write-tree)
commit=$(git -c user.name=msif -c user.email=msif@localhost commit-tree -m "the tree as it stands" "$tree")
git worktree add --quiet --detach "$temporary/study" "$commit"

(
  cd "$temporary/study"
  export PYTHONPATH=$PWD HF_HUB_OFFLINE=1  # this tree's msif, not the installed one
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # as msif.run does
  dvc repro --glob "*@tiny" "*@tiny-*"
  git checkout --quiet HEAD -- reports/tiny
  pytest -q -p no:python -p no:cacheprovider --nbval-lax --nbval-current-env reports/tiny
)
