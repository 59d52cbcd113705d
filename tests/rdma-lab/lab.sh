#!/usr/bin/env bash
# Small VMs with real RDMA verbs: Debian's kernel with Soft-RoCE (rdma_rxe), emulated, wired to each other by unix sockets.
#
#     tests/rdma-lab/lab.sh run -n 2 -- ibv_devices     runs a command in every VM and prints what each says
#     tests/rdma-lab/lab.sh up -n 4 -w ring             reads lines like the following from standard input, until it ends
#         run VM COMMAND…          runs it there, prints what it says and its exit code
#         start VM NAME COMMAND…   does not wait: DIR/VM/NAME.out, .err and at last .code (exit code, and when in seconds
#                                  since the VM's boot) tell
#         kill VM | freeze VM | thaw VM
#         loss VM PEER NETEM…      netem on the cable to PEER (`loss 2%`, `delay 10ms reorder 25%`; `none` ends it)
#     tests/rdma-lab/lab.sh setup                       fetches the kernel and packs the first files, and no more
#
#     -n COUNT    VMs (2): alpha bravo charlie delta echo foxtrot golf hotel
#     -w WIRING   mesh (default): a cable between every two, with an RDMA device at each end, named rxe_PEER
#                 ring: cables between neighbours only;  hub: one card each, rxe_lan, all on one segment
#     -d DIR      the directory that VMs and this machine share (default: one that is removed unless something failed)
#     -b BINARY   the tbshard that DIR/hosts.yaml names (default: target/release/tbshard of this repository)
#     -m MIB      memory of a VM (256)       -M MTU   of every card (9000: RDMA messages travel in 4096 bytes)
#     -T SECONDS  after which everything is ended (300), with exit code 124
#
# All VMs also have a network card on one segment, `lan`, each with an sshd. Nothing is on any network of this machine.
# It needs no root, no InfiniBand and no /dev/kvm, but Debian or something like it on x86-64. `run` exits with the first
# code that is not 0; 77 means that this machine lacks something.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tbshard/rdma-lab
packages="qemu-system-x86 busybox-static cpio kmod xz-utils iproute2 openssh-server libibverbs1 ibverbs-providers ibverbs-utils"
all_names=(alpha bravo charlie delta echo foxtrot golf hotel)

say() { echo "rdma-lab: $*" >&2; }
fail() { say "$*"; exit 1; }
lacks() { say "$*"; exit 77; }
usage() { sed -n '2,/^set -e/s/^# \{0,1\}//p' "$0"; exit 2; }

mode=${1:-} count=2 wiring=mesh dir="" binary="" memory=256 mtu=9000 limit=300
case $mode in run | up | setup) shift ;; *) usage ;; esac
while [ $# -gt 0 ]; do
  case $1 in
    -n) count=$2 ;; -w) wiring=$2 ;; -d) dir=$2 ;; -b) binary=$2 ;; -m) memory=$2 ;; -M) mtu=$2 ;; -T) limit=$2 ;;
    --) shift; break ;;
    *) usage ;;
  esac
  shift 2
done
case $wiring in mesh | ring | hub) ;; *) usage ;; esac
case $count in [1-8]) ;; *) usage ;; esac
[ "$mode" != run ] || [ $# -gt 0 ] || usage
names=("${all_names[@]:0:count}")

[ "$(uname -sm)" = "Linux x86_64" ] || lacks "the lab's VMs are Linux on x86-64"
for program in qemu-system-x86_64 perl busybox cpio depmod xz rdma /usr/sbin/sshd ibv_devices apt-get; do
  command -v $program >/dev/null ||
    lacks "$program is missing; as root: apt-get update && apt-get install -y --no-install-recommends $packages"
done

# ---- the kernel: Debian's package, unpacked and not installed (linux-image-cloud-amd64 has no rxe)
modules=(virtio_pci virtio_net crc32_generic ib_uverbs rdma_ucm rdma_rxe 9pnet_virtio 9p overlay sch_netem)

unpack_kernel() { # PACKAGE DIR
  local tree base version image offset
  tree=$(mktemp -d "$cache/new.XXXXXX")
  say "downloading $1"
  (cd "$tree" && apt-get download "$1" >/dev/null 2>"$tree/why") || lacks "cannot download $1: $(cat "$tree/why")"
  dpkg -x "$tree"/*.deb "$tree/x"
  rm "$tree"/*.deb
  base=$tree/x
  [ -d "$base/lib/modules" ] || base=$tree/x/usr
  version=$(ls "$base/lib/modules")
  mkdir -p "$tree/new/modules"
  depmod -b "$base" "$version"
  # qemu starts an ELF kernel at once; the compressed one would unpack itself on the emulated processor
  image=$(echo "$tree"/x/boot/vmlinuz-*)
  offset=$(grep -abo -m1 -P '\xfd7zXZ' "$image" | head -n 1 | cut -d: -f1)
  # xz complains of what follows its data
  tail -c +$((offset + 1)) "$image" | xz -dc >"$tree/new/vmlinux" 2>/dev/null || true
  [ "$(head -c 4 "$tree/new/vmlinux" | tail -c 3)" = ELF ] || fail "there is no xz-compressed kernel in $1"
  local module path file
  for module in "${modules[@]}"; do
    modprobe -d "${base%/usr}" -S "$version" --show-depends "$module" 2>/dev/null || fail "$1 has no module $module"
  done | while read -r word path _; do
    file=$(basename "${path%.xz}")
    if [ "$word" != insmod ] || [ -e "$tree/new/modules/$file" ]; then continue; fi
    case $path in *.xz) xz -dc "$path" ;; *) cat "$path" ;; esac >"$tree/new/modules/$file"
    echo "$file" >>"$tree/new/modules/order"
  done
  rm -rf "$2"
  mv "$tree/new" "$2"
  rm -rf "$tree"
}

pack() { # KERNEL: the first files of a VM, not compressed: to unpack them would take an emulated processor longer
  local tree
  tree=$(mktemp -d "$cache/new.XXXXXX")
  chmod 755 "$tree"
  mkdir "$tree"/{bin,proc,sys,dev}
  cp "$(command -v busybox)" "$tree/bin/busybox"
  cp -r "$1/modules" "$tree/modules"
  cp "$here/init" "$tree/init"
  chmod 755 "$tree/init"
  (cd "$tree" && find . | sort | cpio -o -H newc -R 0:0 --quiet) >"$tree.cpio"
  mv "$tree.cpio" "$1/initrd"
  rm -rf "$tree"
}

mkdir -p "$cache"
exec 9>"$cache/door"
flock 9 # two labs that start at once
package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
kernel=$(find "$cache" -maxdepth 1 -name 'linux-image-*' -print -quit)
# without lists of packages the kernel that is there will do
[ -z "$package" ] || kernel=$cache/$package
[ -n "$kernel" ] || lacks "apt-get knows no linux-image-amd64; as root: apt-get update"
[ -e "$kernel/vmlinux" ] || unpack_kernel "$package" "$kernel"
if [ "$here/init" -nt "$kernel/initrd" ] || [ "$0" -nt "$kernel/initrd" ]; then pack "$kernel"; fi

# no_timer_check: a busy machine emulates timers so late that the kernel takes them for broken and gives up
arguments="console=ttyS0 quiet panic=-1 no_timer_check mitigations=off apparmor=0 selinux=0 audit=0 random.trust_cpu=on"
machine=(-m "$memory" -smp 1 -nodefaults -no-user-config -display none -no-reboot -kernel "$kernel/vmlinux" -initrd "$kernel/initrd")

# ---- KVM if it works. The device may be there and be of no use (nested, or in software): what decides is a VM
boot_id=$(cat /proc/sys/kernel/random/boot_id)
if [ "$(cut -d' ' -f1 "$cache/accelerator" 2>/dev/null)" != "$boot_id" ]; then
  found=tcg
  if [ -w /dev/kvm ] && timeout -k 2 12 qemu-system-x86_64 -accel kvm -cpu host "${machine[@]}" -serial stdio \
    -append "$arguments lab.probe=1" </dev/null 2>/dev/null | grep -q 'lab: alive'; then found=kvm; fi
  echo "$boot_id $found" >"$cache/accelerator"
fi
accelerator=$(cut -d' ' -f2 "$cache/accelerator")
case $accelerator in kvm) processor=host ;; *) processor=max ;; esac
exec 9>&-
[ "$mode" != setup ] || exit 0

# ---- the shared directory
begin=$(date +%s.%N)
since() { awk -v a="$begin" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }'; }
given=$dir
[ -n "$dir" ] || dir=$(mktemp -d -t rdma-lab.XXXXXX)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
wires=$(mktemp -d -t rdma-wires.XXXXXX) # a socket's path must be short
declare -A pid
declare -a lan
code=1
finish() {
  kill -KILL "${pid[@]}" 2>/dev/null || true
  while kill -0 "${pid[@]}" 2>/dev/null; do sleep 0.02; done
  rm -rf "$wires"
  local name
  for name in "${names[@]}"; do
    grep -aE 'lab: |Oops|BUG:|Call Trace|rxe.*(error|fail)' "$dir/$name/console" 2>/dev/null | head -n 5 | sed "s/^/[$name] console: /" >&2 || true
  done
  if [ -n "$given" ]; then :; elif [ "$code" = 0 ]; then rm -rf "$dir"; else say "what the VMs wrote is in $dir"; fi
}
trap finish EXIT
trap 'code=130; exit 130' INT TERM HUP
in_time() { # every wait asks
  [ $SECONDS -lt "$limit" ] || { code=124; say "ended: $limit s are over"; exit "$code"; }
}
case $dir in *[!A-Za-z0-9/._-]*) fail "the kernel's command line cannot name $dir" ;; esac
for key in key host_key; do [ -e "$dir/$key" ] || ssh-keygen -q -t ed25519 -N "" -C lab -f "$dir/$key"; done
for name in "${names[@]}"; do
  mkdir -p "$dir/$name"
  rm -f "$dir/$name"/{ready,.tty.*,*.code}
  mkfifo "$dir/$name/.tty.in" "$dir/$name/.tty.out"
done

# ---- the cluster
[ "$count" -gt 1 ] || wiring=hub # alone, it has its card
cabled() { # A B: whether there is a cable
  local apart=$((($1 - $2 + count) % count))
  case $wiring in mesh) [ $apart != 0 ] ;; ring) [ $apart = 1 ] || [ $apart = $((count - 1)) ] ;; hub) false ;; esac
}
binary=${binary:-$here/../../target/release/tbshard}
{
  echo "hosts:"
  for ((a = 0; a < count; a++)); do
    devices=""
    for ((b = 0; b < count; b++)); do
      ! cabled $a $b || devices+="${devices:+, }${names[b]}: rxe_${names[b]}"
    done
    devices="{$devices}"
    [ "$wiring" != hub ] || devices=rxe_lan
    echo "  - {name: ${names[a]}, addresses: [10.77.0.$((a + 11))], binary: $(realpath -m "$binary"), rdma: $devices}"
  done
  [ "$wiring" != ring ] || echo "topology: ring"
} >"$dir/hosts.yaml"

# ---- machines, and what their cables lead to
machine_of() { # NAME LOG COMMAND…
  local log=$2 whose=$1
  shift 2
  setpriv --pdeathsig KILL "$@" </dev/null >"$log" 2>&1 &
  pid[$whose]=$!
  disown # the shell would tell that it was killed
}
segments=()
plug() { # ENDS…: puts ends of cables, which are called WHOSE-WHERE, on a segment
  segments+=(-- "${@/#/$wires/}")
}
for ((a = 0; a < count; a++)); do lan[a]=$a-255; done
plug "${lan[@]}"
for ((a = 0; a < count; a++)); do
  name=${names[a]} cards=()
  card() { # PEER: the last two bytes of the address say whose end it is and where it leads
    cards+=(-netdev "stream,id=n$1,server=on,addr.type=unix,addr.path=$wires/$a-$1" \
      -device "virtio-net-pci,netdev=n$1,romfile=,host_mtu=$mtu,mac=52:54:00:77:$(printf %02x:%02x $a "$1")")
  }
  card 255
  for ((b = 0; b < count; b++)); do
    cabled $a $b || continue
    card $b
    [ $a -gt $b ] || plug $a-$b $b-$a
  done
  shared="security_model=none,multidevs=remap"
  machine_of "$name" "$dir/$name/qemu.log" qemu-system-x86_64 -accel "$accelerator" -cpu $processor "${machine[@]}" "${cards[@]}" \
    -virtfs "local,path=/,mount_tag=host,readonly=on,$shared" -virtfs "local,path=$dir,mount_tag=lab,$shared" \
    -append "$arguments lab.dir=$dir lab.me=$a lab.names=$(IFS=,; echo "${names[*]}") lab.wiring=$wiring lab.mtu=$mtu" \
    -serial "file:$dir/$name/console" -chardev "pipe,id=line,path=$dir/$name/.tty" -serial chardev:line
  echo "${pid[$name]}" >"$dir/$name/pid"
done
for ((a = 0; a < count; a++)); do
  for ((b = 0; b < count; b++)); do
    until { [ $a = $b ] || ! cabled $a $b || [ -S "$wires/$a-$b" ]; } && [ -S "$wires/$a-255" ]; do
      in_time
      kill -0 "${pid[${names[a]}]}" 2>/dev/null || fail "qemu does not start: $(cat "$dir/${names[a]}/qemu.log")"
      sleep 0.02
    done
  done
done
machine_of switch "$dir/switch.log" perl "$here/switch.pl" "${segments[@]:1}"

alive() { # NAME
  kill -0 "${pid[$1]}" 2>/dev/null || { tail -n 5 "$dir/$1/console" "$dir/$1/qemu.log" >&2; fail "$1 died"; }
}
for name in "${names[@]}"; do
  until [ -s "$dir/$name/ready" ]; do in_time; alive "$name"; sleep 0.05; done
done
say "$count VMs ($wiring, $accelerator) up after $(since) s"

# ---- commands
start_in() { # NAME JOB LINE
  [ -e "$dir/$1/.tty.in" ] || { say "there is no VM $1"; return 1; }
  rm -f "$dir/$1/$2.code"
  # read and write, because to open it for writing only waits for a reader
  echo "$2 $3" 1<>"$dir/$1/.tty.in"
}
end_of() { # NAME JOB: prints its exit code
  until [ -e "$dir/$1/$2.code" ]; do in_time; alive "$1"; sleep 0.05; done
  cut -d' ' -f1 "$dir/$1/$2.code"
}

if [ "$mode" = run ]; then
  code=0
  for name in "${names[@]}"; do start_in "$name" job "$*"; done
  for name in "${names[@]}"; do
    ended=$(end_of "$name" job)
    cat "$dir/$name"/job.{out,err} | sed "s/^/[$name] /"
    [ "$code" != 0 ] || code=$ended
  done
  say "ended after $(since) s with code $code"
  exit "$code"
fi

echo ready
# it hands over half a line when its time is up, so that is all the time there is
while in_time; read -r -t $((limit - SECONDS + 1)) line; do
  read -r word name rest <<<"$line"
  case $word in
    "") ;;
    run)
      start_in "$name" line "$rest" || continue
      ended=$(end_of "$name" line)
      cat "$dir/$name"/line.{out,err}
      echo "exit $ended"
      ;;
    start) read -r job rest <<<"$rest"; start_in "$name" "$job" "$rest" || true ;;
    kill) kill -KILL "${pid[$name]}" ;;
    freeze) kill -STOP "${pid[$name]}" ;;
    thaw) kill -CONT "${pid[$name]}" ;;
    loss)
      read -r peer rest <<<"$rest"
      if [ "$rest" = none ]; then rest="del dev $peer root"; else rest="replace dev $peer root netem limit 10000 $rest"; fi
      start_in "$name" loss "tc qdisc $rest" && echo "exit $(end_of "$name" loss)"
      ;;
    *) say "unknown: $line" ;;
  esac
done
in_time
code=0
