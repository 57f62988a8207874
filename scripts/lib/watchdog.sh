# shellcheck shell=bash disable=SC2154 # variables of common.sh and guest.sh
# A kernel with a software watchdog, for the test of src/agent/watchdog.ts in a virtual machine: this
# machine must not be reset by a test, and its kernel may have no watchdog. Needs common.sh, debian.sh and
# guest.sh.

watchdog_folder=$cache/watchdog

watchdog_kernel_is_there() {
  [[ -e $watchdog_folder/softdog.ko ]]
}

unpack_watchdog_kernel() {
  local packages new file module
  rm -rf "$watchdog_folder".new.*
  packages=$(mktemp -d "$watchdog_folder.new.XXXXXX")
  new=$(mktemp -d "$watchdog_folder.new.XXXXXX")
  # tiny-initramfs: see guest_packages.
  unpack_suite "$guest_suite" "$packages" linux-image-cloud-amd64 tiny-initramfs
  file=$(find_one "$packages/boot" 'vmlinuz-*')
  cp "$file" "$new/vmlinuz"
  for module in watchdog softdog; do
    file=$(find_one "$packages/lib/modules" "$module.ko")
    cp "$file" "$new/"
  done
  chmod 755 "$new"
  rm -rf "$packages" "$watchdog_folder"
  mv -T "$new" "$watchdog_folder"
}
