#!/usr/bin/env bash
# A backend for the command engine: an instance is a process, and FOLDER holds what is known of it.
# Usage: machines.sh FOLDER DORMOUSE start|sleep|list
# Starts nothing but what it is asked for: the contract runs it hundreds of times.
set -euo pipefail
folder=$1 dormouse=$2 verb=$3
input=$(</dev/stdin)
# Enough of JSON for what is asked of it here; a program of yours has jq.
field() {
  value=
  if [[ $input =~ \"$1\":\"?([^\",}]*) ]]; then value=${BASH_REMATCH[1]}; fi
}

# `state` and `mark` of a process; nothing if it is dead.
look() {
  local stat
  state='' mark=''
  { read -r stat </proc/"$1"/stat; } 2>/dev/null || return 0
  read -r -a stat <<<"${stat##*) }"
  if [ "${stat[0]}" != Z ]; then state=${stat[0]} mark=$1:${stat[19]}; fi
}

# The `life` of the session, and the `state` of its process; nothing if its number is another's now.
find() {
  life='' state=''
  { read -r life <"$folder/$1.life"; } 2>/dev/null || return 0
  look "${life%%:*}"
  if [ "$mark" != "$life" ]; then state=; fi
}

# Looks again and again until its state is, or is not (with !), the given one.
wait_until() {
  find "$session"
  until [ "$state" "$1" "$2" ]; do
    sleep 0.01
    find "$session"
  done
}

field session && session=$value
case $verb in
start)
  find "$session"
  socket=$folder/$session.sock
  if [ -z "$state" ]; then
    rm -f "$socket"
    field flags
    # shellcheck disable=SC2086 # words
    setsid "$dormouse" demo-session --listen "unix:$socket" $value </dev/null >/dev/null 2>&1 &
    look $!
    life=$mark
    field generation
    echo "$value" >"$folder/$session.generation"
    echo "$life" >"$folder/$session.life"
  fi
  kill -CONT "${life%%:*}"
  wait_until != T
  echo "{\"address\": \"unix:$socket\", \"life\": \"$life\"}"
  ;;
sleep)
  find "$session"
  field to
  if [ -n "$state" ] && [ "$value" = paused ]; then
    kill -STOP "${life%%:*}"
    wait_until = T
  elif [ -n "$state" ]; then
    kill -TERM "${life%%:*}"
    kill -CONT "${life%%:*}"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      find "$session"
      [ -n "$state" ] || break
      sleep 0.02
    done
    [ -z "$state" ] || kill -KILL "${life%%:*}"
    wait_until = ''
  fi
  if [ "$value" = removed ]; then rm -f "$folder/$session".*; fi
  ;;
list)
  comma='['
  for file in "$folder"/${session:-*}.life; do
    [ -e "$file" ] || continue
    name=${file##*/} name=${name%.life}
    find "$name"
    case $state in '') word=stopped ;; T) word=paused ;; *) word=running ;; esac
    echo "$comma{\"session\": \"$name\", \"state\": \"$word\", \"life\": \"$life\"," \
      "\"generation\": $(<"$folder/$name.generation")}"
    comma=,
  done
  if [ "$comma" = '[' ]; then echo '['; fi
  echo ']'
  ;;
esac
