# SPDX-License-Identifier: MIT
# Shared by tools/test and tools/demo: installs what is missing (Debian, Ubuntu) and chooses generator and job count.

build_packages=(libeigen3-dev nlohmann-json3-dev libpng-dev libjpeg-dev libcli11-dev libtomlplusplus-dev libarchive-dev)
build_commands=(g++:g++ cmake:cmake ninja:ninja-build python3:python3)
test_packages=(doctest-dev libbenchmark-dev libxtensor-dev zlib1g-dev openmpi-bin libopenmpi-dev)
test_commands=(clang++:clang)

die() {
  echo "error: $*" >&2
  exit 1
}

# install_missing PACKAGE_OR_COMMAND:PACKAGE... installs only what is not there yet, and asks the network for nothing else.
install_missing() {
  local item missing=()
  for item in "$@"; do
    if [[ $item == *:* ]]; then
      command -v "${item%%:*}" >/dev/null || missing+=("${item#*:}")
    elif command -v dpkg-query >/dev/null; then
      dpkg-query -W -f='${Status}' "$item" 2>/dev/null | grep -q 'ok installed' || missing+=("$item")
    fi
  done
  ((${#missing[@]})) || return 0

  command -v apt-get >/dev/null || die "please install (names as on Debian): ${missing[*]}"
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "missing packages: ${missing[*]}; run as root or install sudo"
    as_root=(sudo)
  fi
  echo "installing: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq || echo "apt-get update failed; trying with the lists that are here" >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    >/dev/null || die "could not install: ${missing[*]}"
}

# One job per processor, but at least 2 GB of memory for each: a test that instantiates a whole network needs about 1 GB.
choose_jobs() {
  local memory_kb processors jobs
  processors=$(nproc)
  memory_kb=$(awk '/MemAvailable/ {print $2}' /proc/meminfo)
  jobs=$((memory_kb / 2000000))
  ((jobs < 1)) && jobs=1
  ((jobs > processors)) && jobs=$processors
  echo "$jobs"
}

require_cmake() {
  local version
  version=$(cmake --version | awk 'NR == 1 {print $3}')
  [[ $(printf '%s\n' 3.25 "$version" | sort -V | head -n 1) == 3.25 ]] ||
    die "CMake 3.25 or newer is needed, this is $version (Debian 12 and Ubuntu 23.04 have it; elsewhere: pip install cmake)"
}

choose_generator() {
  if [[ -z ${CMAKE_GENERATOR:-} ]] && command -v ninja >/dev/null; then
    export CMAKE_GENERATOR=Ninja
  fi
}
