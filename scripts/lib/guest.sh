# shellcheck shell=bash disable=SC2154 # variables of common.sh
# The lab's guest: a Debian kernel and an initramfs of busybox, Perl and guest/. Nothing in it is taken from
# this machine's own system, so it is the same everywhere. src/lab/assets.ts knows where it is.
#
#   guest/base/   what comes out of the packages: vmlinuz, root/
#   guest/image/  vmlinuz and initrd.img for QEMU; sources.sha256 names their sources in guest/
# Needs common.sh and debian.sh.

guest_suite=bookworm
guest_folder=$cache/guest
# Raised when the list of packages or files below changes.
guest_base_version=1

guest_packages=(
  linux-image-cloud-amd64
  tiny-initramfs # stands for initramfs-tools, which the kernel's package would bring with all that it needs
  busybox-static
  perl-base
  libperl5.36 # Digest::MD5 and Time::HiRes
)

# Each needs those before it. virtio_ring comes before virtio: virtio's own dependency list does not name it.
guest_modules=(
  virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci
  failover net_failover virtio_net
  virtio_blk
)

guest_commands=(sh mount insmod ip cat echo sleep ls dmesg)

guest_base_is_there() {
  [[ $(cat "$guest_folder/base/.version" 2>/dev/null) == "$guest_base_version" ]]
}

# The one file below a folder that has this name.
find_one() {
  local folder=$1 name=$2
  local -a found
  mapfile -t found < <(find "$folder" -name "$name" -not -type d)
  if ((${#found[@]} != 1)); then
    echo "expected one $name in the guest's packages, found ${#found[@]}" >&2
    return 1
  fi
  printf '%s\n' "${found[0]}"
}

unpack_guest_base() {
  local packages base root file module library
  mkdir -p "$guest_folder"
  rm -rf "$guest_folder"/new.*
  packages=$(mktemp -d "$guest_folder/new.XXXXXX")
  base=$(mktemp -d "$guest_folder/new.XXXXXX")
  root=$base/root
  unpack_suite "$guest_suite" "$packages" "${guest_packages[@]}"

  file=$(find_one "$packages/boot" 'vmlinuz-*')
  cp "$file" "$base/vmlinuz"

  mkdir -p "$root"/{bin,dev,proc,sys,tmp,lib/modules,lib64,lib/x86_64-linux-gnu}
  for module in "${guest_modules[@]}"; do
    file=$(find_one "$packages/lib/modules" "$module.ko")
    cp "$file" "$root/lib/modules/"
  done
  printf '%s\n' "${guest_modules[@]}" >"$root/lib/modules/modules.list"

  cp "$packages/bin/busybox" "$root/bin/busybox"
  for file in "${guest_commands[@]}"; do
    ln -s busybox "$root/bin/$file"
  done

  cp "$packages/usr/bin/perl" "$root/bin/perl"
  for library in libc.so.6 libm.so.6 libcrypt.so.1; do
    file=$(find "$packages"/{lib,usr/lib}/x86_64-linux-gnu -name "$library" | head -n 1)
    cp --dereference "$file" "$root/lib/x86_64-linux-gnu/"
  done
  cp --dereference "$packages/lib64/ld-linux-x86-64.so.2" "$root/lib64/"
  mkdir -p "$root/usr/lib/x86_64-linux-gnu"
  cp -r "$packages/usr/lib/x86_64-linux-gnu/perl-base" "$root/usr/lib/x86_64-linux-gnu/"
  # Tables of Unicode that no service touches: half of Perl's size.
  rm -rf "$root/usr/lib/x86_64-linux-gnu/perl-base/unicore"
  # Modules that are not part of perl-base, into the folder that its @INC already has.
  local -a modules=(Digest/MD5.pm auto/Digest/MD5/MD5.so Time/HiRes.pm auto/Time/HiRes/HiRes.so)
  for module in "${modules[@]}"; do
    file=$(echo "$packages"/usr/lib/x86_64-linux-gnu/perl/5.*.*/"$module")
    install -D -m 644 "$file" "$root/usr/lib/x86_64-linux-gnu/perl-base/$module"
  done
  file=$(echo "$packages"/usr/share/perl/5.*.*/Digest/base.pm)
  install -D -m 644 "$file" "$root/usr/lib/x86_64-linux-gnu/perl-base/Digest/base.pm"

  chmod 755 "$base" "$root"
  rm -rf "$packages"
  printf '%s\n' "$guest_base_version" >"$base/.version"
  rm -rf "$guest_folder/base"
  mv -T "$base" "$guest_folder/base"
}

guest_sources_sum() {
  cat "$repository/guest/init" "$repository/guest/services.pl" "$guest_folder/base/.version" |
    sha256sum | cut -d ' ' -f 1
}

guest_image_is_current() {
  [[ $(cat "$guest_folder/image/sources.sha256" 2>/dev/null) == "$(guest_sources_sum)" ]]
}

# pack_initrd FOLDER: prints the folder as an initramfs. Not compressed: emulated machines unpack slowly,
# and loading the bytes costs next to nothing. Sorted and with fixed times and owners, so that the same
# sources give the same image.
pack_initrd() {
  find "$1" -exec touch --no-dereference --date=@0 {} +
  (
    cd "$1" || exit
    find . -mindepth 1 -print0 | LC_ALL=C sort --zero-terminated |
      cpio --null --create --format=newc --owner=0:0 --reproducible --quiet
  )
}

build_guest_image() {
  local new
  rm -rf "$guest_folder"/image.new.*
  new=$(mktemp -d "$guest_folder/image.new.XXXXXX")
  chmod 755 "$new"
  cp "$guest_folder/base/vmlinuz" "$new/vmlinuz"

  cp -r "$guest_folder/base/root" "$new/root"
  install -m 755 "$repository/guest/init" "$new/root/init"
  install -m 755 "$repository/guest/services.pl" "$new/root/services.pl"
  pack_initrd "$new/root" >"$new/initrd.img"
  rm -rf "$new/root"

  guest_sources_sum >"$new/sources.sha256"
  rm -rf "$guest_folder/image"
  mv -T "$new" "$guest_folder/image"
}
