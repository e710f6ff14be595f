#!/usr/bin/env bash
# Machines that Wake-on-LAN wakes and SSH shuts down: a program for kind = "command".
# Needs jq, wakeonlan, and an SSH key that may run `poweroff`; [instance.parameters] of the route:
#   mac, address (IP:PORT of what listens there), ssh (USER@HOST), and where the defaults do not fit
#   broadcast ("192.168.1.255") and wol_port.
# What was started once is remembered below, so that all of it can be listed.
set -euo pipefail
umask 077
known=state/wake-on-lan
mkdir -p "$known"

# All of these take an input of the protocol as their first argument.
get() { jq -r ".$2 // empty" <<<"$1"; }
parameter() { get "$1" "instance.parameters.$2"; }
remote() { ssh -n -o BatchMode=yes -o ConnectTimeout=3 "$(parameter "$1" ssh)" "$2" 2>/dev/null; }
boot_id() { remote "$1" "cat /proc/sys/kernel/random/boot_id"; } # its life; fails while it is off
wake() {
  wakeonlan -i "$(parameter "$1" broadcast | grep . || echo 255.255.255.255)" \
    -p "$(parameter "$1" wol_port | grep . || echo 9)" "$(parameter "$1" mac)" >/dev/null
}
tell() {
  local life state=running
  life=$(boot_id "$1") || state=stopped
  jq --arg state "$state" --arg life "$life" \
    '{session, $state, generation: (.generation // 0)} + if $life == "" then {} else {$life} end' <<<"$1"
}

input=$(cat)
if [ "$1" != list ] && [ -z "$(parameter "$input" mac)" ]; then
  echo "the route has no instance.parameters.mac" >&2
  exit 64
fi
case $1 in
start)
  jq '{session, generation, instance: {parameters: .instance.parameters}}' <<<"$input" \
    >"$known/$(get "$input" session).json"
  until life=$(boot_id "$input"); do
    wake "$input" # again and again: a datagram may be lost
    sleep 1
  done
  jq -n --arg address "$(parameter "$input" address)" --arg life "$life" '{$address, $life}'
  ;;
sleep)
  remote "$input" "systemctl poweroff" || true # the connection may end before the answer
  while boot_id "$input" >/dev/null; do sleep 1; done
  ;;
list)
  session=$(get "$input" session)
  for file in "$known"/${session:-*}.json; do
    [ ! -e "$file" ] || tell "$(cat "$file")"
  done | jq -s .
  ;;
esac
