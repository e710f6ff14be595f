#!/bin/bash
# Stands for `jailer`: makes the jail where the real one does, refuses what it refuses, and becomes the
# program in there; without chroot, user and cgroup, which need root and tell nothing here.
set -euo pipefail
fail() { echo "$*" >&2; exit 1; }
limits=()
while [[ $1 != -- ]]; do
  case $1 in
    --id) id=$2 ;;
    --exec-file) program=$2 ;;
    --chroot-base-dir) base=$2 ;;
    --cgroup-version) [[ $2 = 2 ]] || fail "cgroup version $2" ;;
    --uid | --gid) [[ $2 -gt 0 ]] || fail "a jail of root" ;;
    --cgroup) limits+=("$2") ;;
    *) fail "unknown argument $1" ;;
  esac
  shift 2
done
shift
[[ $id =~ ^[a-zA-Z0-9-]{1,64}$ ]] || fail "Invalid instance ID: $id"
[[ $base = /* && $program = /* ]] || fail "relative paths"
for limit in "${limits[@]}"; do [[ $limit =~ ^(memory|pids)\.max=[0-9]+$ ]] || fail "Invalid cgroup: $limit"; done
echo "${limits[*]}" >"$base/limits"
root=$base/$(basename "$program")/$id/root
mkdir -p "$root"
# The real one stumbles over what a life before left there.
mkdir "$root/dev" "$root/run" || fail "Failed to create a device"
cd "$root"
exec "$program" --id "$id" "$@"
