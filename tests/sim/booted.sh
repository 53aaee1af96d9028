# The inside of tests/sim/booted.py, run by unshare(1) with a folder to work in: what is below / here, and
# nothing of it changed: a fresh layer takes all that is written. Then systemd, which sees itself alone.
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 layer "$1"
cd "$1"
mkdir upper work root
mount -t overlay -o "lowerdir=/,upperdir=upper,workdir=work" layer root
cd root
# No unit of this machine's own: they would set its kernel's variables, mount its disks, listen.
rm -rf etc/fstab etc/systemd/system etc/udev/rules.d etc/sysusers.d opt/qsensor etc/qsensor var/lib/qsensor
rm -rf var/log/journal usr/lib/systemd/system-generators usr/lib/systemd/system/*.target.wants
mkdir -p etc/systemd/system usr/lib/systemd/system/sysinit.target.wants old
ln -s ../systemd-journald.service usr/lib/systemd/system/sysinit.target.wants/
ln -sf multi-user.target usr/lib/systemd/system/default.target
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=755 dev dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# The last is the kernel's log, which no daemon should get at, though its mode lets everybody.
for device in null:3 zero:5 full:7 random:8 urandom:9 open-to-all:11; do
    mknod -m 666 "dev/${device%:*}" c 1 "${device#*:}"
done
ip link set lo up
pivot_root . old
umount -l old
exec env -i container=trial PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --show-status=no
