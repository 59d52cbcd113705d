# A Mac, as far as tbshard can tell: every command of macOS that it runs, by the name this is called by. What the Mac is
# stands in files below $HOME/state, which the commands that change something write. Written from documented formats.

name=${0##*/}
state=$HOME/state
has() { [ -e "$state/$1" ]; }
fail() { echo "$1" >&2; exit "${2:-1}"; }
changed() { echo "$*" >> "$state/log"; }

# name|port|device|on or off|address|mask
service() { awk -F'|' -v name="$1" '$1 == name' "$state/services"; }
without() { awk -F'|' -v name="$1" '$1 != name' "$state/services" > "$state/services.new" && mv "$state/services.new" "$state/services"; }
# the addresses of an interface, with their masks in hexadecimal
addresses() {
  awk -F'|' -v device="$1" '$3 == device && $4 == "on" && $5 != "" {
    split($6, part, "."); printf "%s 0x%02x%02x%02x%02x\n", $5, part[1], part[2], part[3], part[4] }' "$state/services"
  awk -v device="$1" '$1 == device { print $2, $3 }' "$state/addresses"
}

case $name in
sw_vers) cat "$state/versions" ;;
system_profiler) cat "$state/profiler" ;;
sysctl)
  case $2 in
  iogpu.wired_limit_mb) cat "$state/wired" ;;
  hw.memsize) cat "$state/memory" ;;
  esac ;;
rdma_ctl)
  has rdma || fail "rdma_ctl: command not found" 127
  cat "$state/rdma" ;;
ibv_devices)
  printf '    device          \t   node GUID\n    ------          \t----------------\n'
  [ "$(cat "$state/rdma")" = enabled ] || exit 0
  awk '{ printf "    rdma_%-10s\t%016x\n", $1, NR }' "$state/links" ;;
ibv_devinfo)
  [ "$(cat "$state/rdma")" = enabled ] || fail "No IB devices found" 255
  while read -r device status; do
    [ "$status" = active ] && port="PORT_ACTIVE (4)" || port="PORT_DOWN (1)"
    has "down-$device" && port="PORT_DOWN (1)"
    printf 'hca_id:\trdma_%s\n\ttransport:\t\t\tThunderbolt (100)\n\tnode_guid:\t\t\t0000:0000:0000:0001\n' "$device"
    printf '\tphys_port_cnt:\t\t\t1\n\t\tport:\t1\n\t\t\tstate:\t\t\t%s\n\t\t\tmax_mtu:\t\t4096 (5)\n' "$port"
    printf '\t\t\tactive_mtu:\t\t4096 (5)\n\t\t\tlink_layer:\t\tThunderbolt\n\t\t\tGID[  0]:\t\tfe80::347c:94ff:fecd:45c4\n'
    at=1
    has no-gid || addresses "$device" | while read -r address _; do
      printf '\t\t\tGID[%3d]:\t\t::ffff:%s\n' "$at" "$address"
    done
    echo
  done < "$state/links" ;;
ifconfig)
  case "$1 $2" in
  "-a ")
    printf 'lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384\n\tinet 127.0.0.1 netmask 0xff000000\n\tinet6 ::1 prefixlen 128\n'
    printf 'en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500\n\tether 00:00:5e:00:53:01\n'
    awk '{ printf "\tinet %s netmask %s broadcast 192.168.1.255\n", $1, $2 }' "$state/lan"
    printf '\tmedia: autoselect\n\tstatus: active\n'
    while read -r device status; do
      printf '%s: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500\n\toptions=460<TSO4,TSO6,CHANNEL_IO>\n' "$device"
      addresses "$device" | while read -r address mask; do printf '\tinet %s netmask %s\n' "$address" "$mask"; done
      printf '\tmedia: autoselect <full-duplex>\n\tstatus: %s\n' "$status"
    done < "$state/links"
    has members || exit 0
    printf 'bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500\n\tConfiguration:\n\t\tmaxage 0 holdcnt 0\n'
    addresses bridge0 | while read -r address mask; do printf '\tinet %s netmask %s\n' "$address" "$mask"; done
    while read -r member; do
      printf '\tmember: %s flags=3<LEARNING,DISCOVER>\n\t        ifmaxaddr 0 port 10 priority 0 path cost 0\n' "$member"
    done < "$state/members"
    printf '\tmedia: <unknown type>\n\tstatus: inactive\n' ;;
  "bridge0 deletem")
    grep -qx "$3" "$state/members" || fail "ifconfig: BRDGDEL $3: No such file or directory"
    grep -vx "$3" "$state/members" > "$state/members.new"
    mv "$state/members.new" "$state/members"
    changed "$name" "$@" ;;
  "bridge0 addm") echo "$3" >> "$state/members"; changed "$name" "$@" ;;
  *) fail "ifconfig: $*: bad" ;;
  esac ;;
networksetup)
  case $1 in
  -listallhardwareports) cat "$state/ports" ;;
  -listnetworkserviceorder)
    echo "An asterisk (*) denotes that a network service is disabled."
    awk -F'|' '{ printf "(%s) %s\n(Hardware Port: %s, Device: %s)\n\n", ($4 == "on" ? NR : "*"), $1, $2, $3 }' "$state/services" ;;
  -getinfo)
    [ -n "$(service "$2")" ] || fail "$2 is not a recognized network service." 4
    service "$2" | awk -F'|' '
      $5 == "" { print "DHCP Configuration"; next }
      { printf "Manual Configuration\nIP address: %s\nSubnet mask: %s\nRouter: \n", $5, $6 }'
    printf 'IPv6: Automatic\nIPv6 IP address: none\nIPv6 Router: none\n' ;;
  -createnetworkservice)
    [ -z "$(service "$2")" ] || fail "** Error: Unable to create service: the name is taken."
    port=$(awk -v device="$3" '/^Hardware Port: / { port = substr($0, 16) } $0 == "Device: " device { print port }' "$state/ports")
    [ -n "$port" ] || fail "$3 is not a recognized hardware port." 4
    echo "$2|$port|$3|on||" >> "$state/services"
    changed "$name" "$@" ;;
  -removenetworkservice)
    [ -n "$(service "$2")" ] || fail "$2 is not a recognized network service." 4
    without "$2"
    changed "$name" "$@" ;;
  -setmanual)
    old=$(service "$2")
    [ -n "$old" ] || fail "$2 is not a recognized network service." 4
    has broken && fail "** Error: The parameters were not valid."
    changed "$name" "$@"
    has stubborn && exit 0
    without "$2"
    echo "$old" | awk -F'|' -v address="$3" -v mask="$4" '{ printf "%s|%s|%s|%s|%s|%s\n", $1, $2, $3, $4, address, mask }' >> "$state/services" ;;
  *) fail "networksetup: $1?" ;;
  esac ;;
PlistBuddy)
  set -- $2
  case $1 in
  Print)
    has configured || fail "Print: Entry, \"$2\", Does Not Exist"
    echo "Array {"; sed 's/^/    /' "$state/configured"; echo "}" ;;
  Delete)
    at=${2##*:}
    sed "$((at + 1))d" "$state/configured" > "$state/configured.new"
    mv "$state/configured.new" "$state/configured"
    changed "$name" "$@" ;;
  Add) echo "$4" >> "$state/configured"; changed "$name" "$@" ;;
  esac ;;
ping) has no-ping && exit 2; exit 0 ;;
sudo)
  [ "$1" = -n ] || fail "sudo: a terminal is required"
  has password && fail "sudo: a password is required"
  shift
  exec "$@" ;;
*) fail "$name is not of this Mac" 127 ;;
esac
