#!/usr/bin/env bash
# Do the committed reports of the tiny profile still hold? Runs the study again, from nothing, in temporary worktrees of the
# tree as it stands; then executes the committed notebooks on those results, where nbval compares the tables they claim.
# Notebooks 01 to 03, of which each stands on the one before, 07 and 08 run in one worktree; beside them 04 to 06 in another: about as long.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"; git -C "$PWD" worktree prune' EXIT
trap 'exit 130' INT TERM

# A commit of all that git does not ignore, made through an index of its own: neither the branch nor the real index moves.
GIT_INDEX_FILE=$temporary/index git add --all
tree=$(GIT_INDEX_FILE=$temporary/index git write-tree)
commit=$(git -c user.name=msif -c user.email=msif@localhost commit-tree -m "the tree as it stands" "$tree")
# rerun FOLDER NOTEBOOK...: their stages and reports, then the committed copies.
rerun() {
  cd "$1" && shift || return
  export PYTHONPATH=$PWD HF_HUB_OFFLINE=1  # this tree's msif, not the installed one
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # as msif.run does
  local name stages=() copies=()
  for name; do stages+=("${name#*_}@tiny" "*report@tiny-$name"); copies+=("reports/tiny/$name.ipynb"); done
  dvc repro --glob "${stages[@]}" &&
    git checkout --quiet HEAD -- reports/tiny &&
    pytest -q -p no:python -p no:cacheprovider --nbval-lax --nbval-current-env "${copies[@]}"
}

mapfile -t names < <(cd notebooks && ls -- *.ipynb | sed 's/\.ipynb$//')
for folder in chain others; do git worktree add --quiet --detach "$temporary/$folder" "$commit"; done
(rerun "$temporary/others" "${names[@]:3:3}") > "$temporary/others.log" 2>&1 & others=$!
(rerun "$temporary/chain" "${names[@]:0:3}" "${names[@]:6}") > "$temporary/chain.log" 2>&1 && chain=0 || chain=$?
wait $others && others=0 || others=$?
for log in chain others; do echo "== $log"; tail -n 25 "$temporary/$log.log"; done
[ $chain = 0 ] && [ $others = 0 ]
