#!/usr/bin/env bash
# Domains of libvirt that exist already: a program for kind = "command", depths = ["paused",
# "suspended", "stopped"]. Needs jq and virsh; [instance.parameters] of the route:
#   domain (its name), port (what listens inside), and where the defaults do not fit uri
#   ("qemu:///system") and grace ("30", in seconds).
# Of all domains, those are listed whose title is a host: virsh desc DOMAIN --config --title HOST
set -euo pipefail
input=$(cat)
get() { jq -r ".$1 // empty" <<<"$input"; }
uri=$(get instance.parameters.uri)
on_host() { virsh -q -c "${uri:-qemu:///system}" "$@"; }
state() { on_host domstate "$1" || exit 66; } # no such domain
# The id of a domain is another one after every boot; none while it is off.
life() { on_host domid "$1" | grep -v '^-' || true; }
address() { on_host domifaddr "$1" | awk '$3 == "ipv4" { sub("/.*", "", $4); print $4; exit }'; }
tell() { # DOMAIN SESSION
  local now word=running
  now=$(state "$1")
  case $now in
  paused) word=paused ;;
  "shut off" | crashed) word=stopped ;;
  esac
  if [ "$word" = stopped ] && on_host dominfo "$1" | grep -q "Managed save: *yes"; then
    word=suspended
  fi
  jq -n --arg session "$2" --arg state "$word" --arg life "$(life "$1")" \
    '{$session, $state} + if $life == "" then {} else {$life} end'
}

domain=$(get instance.parameters.domain)
case $1 in
start)
  now=$(state "$domain")
  case $now in
  running) ;;
  paused) on_host resume "$domain" ;;
  *) on_host start "$domain" ;; # also from a managed save
  esac >&2
  until ip=$(address "$domain") && [ -n "$ip" ]; do sleep 0.2; done
  jq -n --arg address "$ip:$(get instance.parameters.port)" --arg life "$(life "$domain")" \
    '{$address, $life}'
  ;;
sleep)
  now=$(state "$domain")
  case $(get to) in
  paused) [ "$now" != running ] || on_host suspend "$domain" ;;
  suspended) [ "$now" = "shut off" ] || on_host managedsave "$domain" ;;
  stopped)
    on_host managedsave-remove "$domain" || true
    [ "$now" != paused ] || on_host resume "$domain"
    [ "$now" = "shut off" ] || on_host shutdown "$domain"
    grace=$(get instance.parameters.grace) # seconds for the guest's own shutdown
    for _ in $(seq "${grace:-30}"); do
      [ "$(state "$domain")" != "shut off" ] || exit 0
      sleep 1
    done
    on_host destroy "$domain"
    ;;
  esac >&2
  ;;
list)
  if [ -n "$domain" ]; then
    tell "$domain" "$(get session)"
  else
    on_host list --all --name | while read -r domain; do
      title=$([ -z "$domain" ] || on_host desc "$domain" --title)
      if [[ $title =~ ^[a-z0-9.-]+\.[a-z0-9-]+$ ]]; then tell "$domain" "$title"; fi
    done
  fi | jq -s .
  ;;
esac
