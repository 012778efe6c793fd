# The last hook of mmdebstrap, run on the host with $1 as the finished root: downloads and unpacks the kernel package
# $ATOLL_KERNEL_PACKAGE, cleans the root and makes the EROFS file, all into $1/.atoll-out.
set -eu
root="$1"
out="$root/.atoll-out"
mkdir -p "$out/kernel"

# The kernel's package is unpacked beside the root, not installed: no initramfs-tools, no boot loader, no modules in
# the root. The package asked for depends on the one with the newest release's name.
cd "$out"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
image=$(apt-cache depends --important "$ATOLL_KERNEL_PACKAGE" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
[ -n "$image" ] || { echo "$ATOLL_KERNEL_PACKAGE depends on no linux-image package" >&2; exit 1; }
modules=$(apt-cache depends --important "$image" | sed -n 's/^ *Depends: \(linux-modules-[0-9].*\)$/\1/p' | head -n 1)
apt-get -q -o APT::Sandbox::User=root download "$image" $modules
for package in ./*.deb; do
	dpkg-deb -x "$package" kernel
	dpkg-deb -f "$package" Package Version | sed 's/^[A-Za-z]*: *//' | paste - - >>packages
	rm "$package"
done
dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Package}\t${Version}\n' >>packages

# What no guest needs: caches, lists, logs, and the host's own name and resolver, which mmdebstrap copied in. What lies
# in tmp stays: mmdebstrap's configuration of apt is there, and without it its last apt-get would clean the host's lists.
cd "$root"
rm -rf var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/*-old var/cache/ldconfig/* var/lib/dpkg/*-old \
	var/log/* etc/machine-id etc/hostname etc/resolv.conf root/.cache
: >etc/machine-id

# Extended attributes and compression are off: under emulation each decompressed page costs the guest.
mkfs.erofs --quiet -x-1 --exclude-regex='^(dev|proc|sys|run|tmp)/.' --exclude-regex='^\.atoll-out' \
	.atoll-out/root.erofs "$root"
