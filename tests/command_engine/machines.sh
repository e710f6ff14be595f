#!/usr/bin/env bash
# A backend for the command engine: an instance is a process, and FOLDER holds what is known of it.
# Usage: machines.sh FOLDER DORMOUSE start|sleep|list
set -euo pipefail
folder=$1 dormouse=$2 verb=$3
input=$(cat)
field() { jq -r "$1 // empty" <<<"$input"; }
session=$(field .session)

# STATE and LIFE of a process, nothing if it is dead.
look() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  read -r -a stat <<<"${stat##*) }"
  [ "${stat[0]}" = Z ] || echo "${stat[0]} $1:${stat[19]}"
}

# STATE of the session's process; nothing if it is dead or its number is another's now.
state() {
  local life now
  life=$(cat "$folder/$1.life" 2>/dev/null) || return 0
  now=$(look "${life%%:*}")
  [ "${now#* }" = "$life" ] && echo "${now%% *}"
  return 0
}

tell() {
  local word
  case $(state "$1") in '') word=stopped ;; T) word=paused ;; *) word=running ;; esac
  jq -n --arg session "$1" --arg state "$word" --arg life "$(cat "$folder/$1.life")" \
    --argjson generation "$(cat "$folder/$1.generation")" \
    '{$session, $state, $life, $generation}'
}

case $verb in
start)
  socket=$folder/$session.sock
  if [ -z "$(state "$session")" ]; then
    rm -f "$socket"
    flags=$(field .instance.parameters.flags)
    # shellcheck disable=SC2086 # words
    setsid "$dormouse" demo-session --listen "unix:$socket" $flags </dev/null >/dev/null 2>&1 &
    now=$(look $!)
    field .generation >"$folder/$session.generation"
    echo "${now#* }" >"$folder/$session.life"
  fi
  life=$(cat "$folder/$session.life")
  kill -CONT "${life%%:*}"
  while [ "$(state "$session")" = T ]; do sleep 0.01; done
  jq -n --arg address "unix:$socket" --arg life "$life" '{$address, $life}'
  ;;
sleep)
  to=$(field .to)
  life=$(cat "$folder/$session.life" 2>/dev/null) || exit 0
  pid=${life%%:*}
  if [ -n "$(state "$session")" ] && [ "$to" = paused ]; then
    kill -STOP "$pid"
    while [ "$(state "$session")" != T ]; do sleep 0.01; done
  elif [ -n "$(state "$session")" ]; then
    kill -TERM "$pid"
    kill -CONT "$pid"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      [ -n "$(state "$session")" ] || break
      sleep 0.02
    done
    [ -z "$(state "$session")" ] || kill -KILL "$pid"
    while [ -n "$(state "$session")" ]; do sleep 0.01; done
  fi
  [ "$to" != removed ] || rm -f "$folder/$session".*
  ;;
list)
  for life in "$folder"/${session:-*}.life; do
    [ ! -e "$life" ] || tell "$(basename "$life" .life)"
  done | jq -s .
  ;;
esac
