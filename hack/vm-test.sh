#!/bin/bash
# make test-v2: the runtime's tests on a kernel with cgroup v2 alone, in a virtual machine under plain emulation.
# Debian's cloud kernel is downloaded, not installed. Arguments filter the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
hack/setup.sh qemu-system-x86 cpio
work=$PWD/target/vm
mkdir -p "$work"
if ! ls "$work"/k/boot/vmlinuz-* >/dev/null 2>&1; then
    apt-get -qq update
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n1)
    [ -n "$package" ] || { echo "hack/vm-test.sh: apt knows no linux-image-cloud-amd64" >&2; exit 1; }
    (cd "$work" && apt-get -qq download "$package" && dpkg-deb -x linux-image-*.deb k && rm -f linux-image-*.deb)
fi
bin=$(cargo test -p skiff-runtime --test all --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*deps\/all-[^"]*\)".*/\1/p' | tail -n1)
[ -x "$bin" ] || { echo "hack/vm-test.sh: the runtime's tests did not build" >&2; exit 1; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,proc,sys,dev,newroot}
cp /bin/busybox "$root/bin/"
strip -o "$root/all" "$bin"
find "$work/k/lib/modules" -name 'overlay.ko*' -exec cp {} "$root/" \;
cat >"$root/init" <<'EOI'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
insmod /overlay.ko
# The initramfs is no place to pivot from: a tmpfs becomes the root.
mount -t tmpfs -o size=1500m tmpfs /newroot
for d in bin proc sys dev var/tmp etc tmp run root; do mkdir -p /newroot/$d; done
cp -a /bin/* /newroot/bin/; cp /all /stage2 /newroot/
echo root:x:0:0::/root:/bin/sh > /newroot/etc/passwd; echo node > /newroot/etc/hostname; touch /newroot/etc/resolv.conf
umount /proc
exec switch_root /newroot /stage2
EOI
cat >"$root/stage2" <<EOI
#!/bin/sh
export PATH=/bin RUST_BACKTRACE=0
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname node; ip link set lo up
ulimit -n 16384
echo "kernel \$(uname -r), cgroup v2: \$(cat /sys/fs/cgroup/cgroup.controllers)"
/all --nocapture $* 2>&1
echo "vm-test ended with \$?"
poweroff -f
EOI
chmod +x "$root/init" "$root/stage2"
(cd "$root" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initramfs.gz"
timeout 580 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 4096 -nographic -no-reboot \
    -kernel "$work"/k/boot/vmlinuz-* -initrd "$work/initramfs.gz" \
    -append "console=ttyS0 quiet panic=1 cgroup_no_v1=all" </dev/null | tee "$work/log"
grep -q 'vm-test ended with 0' "$work/log"
