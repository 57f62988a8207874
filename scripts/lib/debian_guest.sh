# shellcheck shell=bash disable=SC2154 # variables of common.sh and guest.sh
# A guest with real servers: Debian's nginx, Redis and PostgreSQL on an ext4 disk, started by
# guest/debian/init under the kernel of guest.sh. src/lab/assets.ts knows where it is.
#
#   debian-guest/base/   what comes out of the packages: root/
#   debian-guest/tools/  the clients wrk, curl, redis-cli, psql, pgbench with their libraries, not installed
#   debian-guest/image/  initrd.img, disk.raw (sparse); sources.sha256 names their sources in guest/debian/
# Needs common.sh, debian.sh and guest.sh.

debian_guest_folder=$cache/debian-guest
# Raised when the packages or what is left of them change.
debian_guest_base_version=1
# A multiple of 64 KiB, as the disk's graph in QEMU needs it.
debian_guest_disk_mib=1024

debian_guest_packages=(busybox-static nginx-light redis-server postgresql-15 wrk curl)
debian_guest_tools=(wrk curl redis-cli redis-benchmark psql pgbench pg_amcheck)

# Neither used by the servers as configured (just-in-time compilation is off) nor by anything else here.
debian_guest_left_out=(
  'usr/lib/x86_64-linux-gnu/libLLVM*' 'usr/lib/x86_64-linux-gnu/libz3*' usr/lib/postgresql/15/lib/bitcode
  'usr/lib/postgresql/15/lib/llvmjit*' 'usr/share/i18n/*' 'var/cache/*' 'var/lib/apt/*'
)

debian_guest_base_is_there() {
  [[ $(cat "$debian_guest_folder/base/.version" 2>/dev/null) == "$debian_guest_base_version" ]]
}

unpack_debian_guest_base() {
  local base root path
  mkdir -p "$debian_guest_folder"
  rm -rf "$debian_guest_folder"/new.*
  base=$(mktemp -d "$debian_guest_folder/new.XXXXXX")
  root=$base/root
  # Installed, not only unpacked: the packages make their users and PostgreSQL its cluster.
  make_root essential "$guest_suite" "$root" "${debian_guest_packages[@]}"
  copy_debian_guest_tools "$root" "$base/tools"
  for path in "${debian_guest_left_out[@]}"; do
    # shellcheck disable=SC2086 # the patterns are to be expanded
    (cd "$root" && rm -rf -- $path)
  done
  chmod 755 "$base"
  printf '%s\n' "$debian_guest_base_version" >"$base/.version"
  rm -rf "$debian_guest_folder/tools" "$debian_guest_folder/base"
  mv -T "$base/tools" "$debian_guest_folder/tools"
  mv -T "$base" "$debian_guest_folder/base"
}

# The programs and all libraries that they load, found by their own loader.
copy_debian_guest_tools() {
  local root=$1 tools=$2 tool path
  mkdir -p "$tools/bin" "$tools/lib"
  for tool in "${debian_guest_tools[@]}"; do
    path=usr/lib/postgresql/15/bin/$tool
    [[ -x $root/$path ]] || path=usr/bin/$tool
    cp --dereference "$root/$path" "$tools/bin/"
    chroot "$root" /lib64/ld-linux-x86-64.so.2 --list "/$path" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' |
      while read -r path; do
        cp --dereference "$root$path" "$tools/lib/"
      done
  done
  cp --dereference "$root/lib64/ld-linux-x86-64.so.2" "$tools/lib/"
}

debian_guest_sources_sum() {
  cat "$repository"/guest/debian/* "$debian_guest_folder/base/.version" "$guest_folder/base/.version" |
    sha256sum | cut -d ' ' -f 1
}

debian_guest_image_is_current() {
  [[ $(cat "$debian_guest_folder/image/sources.sha256" 2>/dev/null) == "$(debian_guest_sources_sum)" ]]
}

build_debian_guest_image() {
  local new file
  rm -rf "$debian_guest_folder"/image.new.*
  new=$(mktemp -d "$debian_guest_folder/image.new.XXXXXX")
  chmod 755 "$new"

  build_debian_guest_initrd "$new"
  cp --archive --reflink=auto "$debian_guest_folder/base/root" "$new/root"
  cp -r "$repository/guest/debian" "$new/root/tmp/colo"
  # The server that fills the database sees no network and no process of this machine, and nothing of it
  # stays.
  # shellcheck disable=SC2016 # expanded inside
  unshare --mount --net --pid --ipc --fork --kill-child bash -euc '
    mount --bind "$1" "$1"
    mount -t proc proc "$1/proc"
    mount -t tmpfs tmpfs "$1/run"
    mount --rbind /dev "$1/dev"
    mount -t tmpfs tmpfs "$1/dev/shm"
    chroot "$1" /bin/bash /tmp/colo/prepare /tmp/colo
  ' prepare "$new/root"
  rm -rf "$new/root/tmp/colo" "$new/root/run"
  mkdir -p "$new/root/run"

  file=$new/disk.raw
  truncate --size="${debian_guest_disk_mib}M" "$file"
  # A fixed name, so that one build is like another; no space kept back for root.
  mkfs.ext4 -q -d "$new/root" -m 0 -U 636f6c6f-0000-4000-8000-000000000001 \
    -E hash_seed=636f6c6f-0000-4000-8000-000000000002,lazy_itable_init=1,nodiscard \
    -J size=16 -L colo-guest "$file"
  rm -rf "$new/root"

  debian_guest_sources_sum >"$new/sources.sha256"
  rm -rf "$debian_guest_folder/image"
  mv -T "$new" "$debian_guest_folder/image"
}

# The modules and busybox of guest.sh, with an init that mounts the disk.
build_debian_guest_initrd() {
  local new=$1 root=$1/initrd
  mkdir -p "$root"/{bin,dev,proc,sys,root,lib}
  cp -r "$guest_folder/base/root/lib/modules" "$root/lib/"
  cp "$guest_folder/base/root/bin/busybox" "$root/bin/"
  local command
  for command in sh mount insmod ip cat echo switch_root; do
    ln -s busybox "$root/bin/$command"
  done
  install -m 755 "$repository/guest/debian/initramfs-init" "$root/init"
  pack_initrd "$root" >"$new/initrd.img"
  rm -rf "$root"
}
