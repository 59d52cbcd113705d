# The first process of a machine of the lab, in namespaces of its own. It prints its number outside them and then `ready`,
# and ends, with everything on the machine, when its standard input does.
#
# arguments: kind (switch, launcher, host), name, the machine's directory, directories that stay visible
read -r pid _ < /proc/self/stat
kind=$1 name=$2 dir=$3
shift 3
set -e

if [ "$kind" != switch ]; then
  echo "$name" > /proc/sys/kernel/hostname
  ip link set lo up
  for place in /root /tmp /run /dev/shm; do
    new=$dir/mount
    mkdir -p "$new"
    mount -n -t tmpfs -o mode=1777,size=2g tbshard-lab "$new"
    for keep; do
      case $keep in
        "$place"/*) mkdir -p "$new${keep#"$place"}"; mount -n --bind "$keep" "$new${keep#"$place"}" ;;
      esac
    done
    mount -n --move "$new" "$place"
  done
  chmod 700 /root
  mkdir -p /run/sshd
  for file in hosts passwd shadow nsswitch.conf; do mount -n --bind "$dir/$file" "/etc/$file"; done
fi
if [ "$kind" = host ]; then
  mount -n -t proc proc /proc
  /usr/sbin/sshd -f "$dir/sshd_config" -E "$dir/sshd.log"
  until [ -s /run/sshd.pid ]; do sleep 0.01; done
fi
echo "$pid ready"
set +e
# known by these arguments as what holds the machine up
cat -- - > /dev/null

# a host's namespace of processes ends with this one; the others have none
if [ "$kind" != host ]; then
  here=$(readlink /proc/self/ns/net)
  for process in /proc/[0-9]*; do
    [ "$(readlink "$process/ns/net" 2>/dev/null)" = "$here" ] && [ "${process#/proc/}" != "$pid" ] && kill -KILL "${process#/proc/}"
  done
fi 2>/dev/null
exit 0
