# shellcheck shell=bash
# Debian packages: installing them on this machine, and unpacking those of another suite into a folder.
# Needs common.sh.

# Waits for another package manager (an unattended upgrade, say) instead of failing.
apt_lock_wait_s=300

apt_quiet() {
  DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes \
    -o Dpkg::Use-Pty=0 -o "DPkg::Lock::Timeout=$apt_lock_wait_s" "$@"
}

# Those of the packages that are not installed, one a line.
missing_packages() {
  local installed
  # shellcheck disable=SC2016 # the format is dpkg-query's, not the shell's
  installed=$(dpkg-query --show --showformat='${Package} ${db:Status-Status}\n' "$@" 2>/dev/null |
    sed -n 's/ installed$//p' || true)
  printf '%s\n' "$@" |
    grep --line-regexp --fixed-strings --invert-match --file=<(printf '%s\n' "$installed") || true
}

install_packages() {
  apt_quiet update
  apt_quiet install --no-install-recommends "$@"
}

# The address of the Debian archive in the machine's own apt configuration. apt knows it only once its lists
# are there.
debian_mirror() {
  # shellcheck disable=SC2016 # the format is apt's, not the shell's
  apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)' 'Created-By: Packages' 2>/dev/null |
    awk -F '|' '$1 == "Debian" && $3 !~ /security|backports|updates/ { print $2; exit }'
}

# unpack_suite SUITE[,PREFERRED] FOLDER PACKAGE...: unpacks the packages and what they depend on, without
# installing anything. With a second suite, such as backports, that has a package its version is taken.
unpack_suite() {
  make_root extract "$@"
}

# make_root VARIANT SUITE FOLDER PACKAGE...: makes a root folder of the packages and what they depend on, with
# mmdebstrap's VARIANT: "extract" unpacks only, "essential" installs a system that can be entered.
make_root() {
  local variant=$1 suite=${2%%,*} preferred='' folder=$3 mirror packages
  [[ $2 != *,* ]] || preferred=${2#*,}
  shift 3
  packages=$(IFS=, && printf '%s' "$*")
  mirror=$(debian_mirror)
  if [[ -z $mirror ]]; then
    apt_quiet update
    mirror=$(debian_mirror)
  fi
  if [[ -z $mirror ]]; then
    echo "apt is not configured for a Debian archive: add one to its sources."
    return 1
  fi
  local proxy=''
  eval "$(apt-config shell proxy Acquire::http::Proxy)"
  local -a command=(mmdebstrap --variant="$variant" --include="$packages"
    --aptopt='APT::Install-Recommends "false"' --dpkgopt=path-exclude='/usr/share/doc/*'
    --dpkgopt=path-exclude='/usr/share/man/*' --dpkgopt=path-exclude='/usr/share/locale/*')
  [[ -z $proxy ]] || command+=(--aptopt="Acquire::http::Proxy \"$proxy\"")
  local -a sources=("$mirror")
  if [[ -n $preferred ]]; then
    command+=(--aptopt="APT::Default-Release \"$preferred\"")
    sources=("deb $mirror $suite main" "deb $mirror $preferred main")
  fi
  local output
  if output=$("${command[@]}" "$suite" "$folder" "${sources[@]}" 2>&1); then
    printf '%s\n' "$output"
    return
  fi
  printf '%s\n' "$output"
  [[ $output == *'Release file'*'is expired'* ]] || return 1
  # A mirror that is a frozen copy serves a Release file whose validity has run out. Its signature is still
  # checked.
  say "  the mirror's copy of Debian $suite is older than its Release file allows: used anyway"
  rm -rf "$folder"
  "${command[@]}" --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$folder" "${sources[@]}"
}

# unpack_program FOLDER PACKAGE PATH: unpacks one program of a package into a folder of the cache and asks
# for its version; for packages that would also install and start a server.
unpack_program() {
  local folder=$1 package=$2 path=$3 new
  rm -rf "$folder".new.*
  new=$(mktemp -d "$folder.new.XXXXXX")
  chmod 755 "$new"
  (
    cd "$new" || exit
    # The lists may be missing or too old for what the mirror holds now.
    apt_quiet download "$package" || {
      apt_quiet update
      apt_quiet download "$package"
    }
    dpkg-deb --fsys-tarfile "${package}"_*.deb | tar --extract "./$path"
    rm "${package}"_*.deb
  )
  "$new/$path" --version
  rm -rf "$folder"
  mv -T "$new" "$folder"
}
