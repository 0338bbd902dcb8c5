# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by tests/run.sh, bench/run.sh and examples/train.sh: brings a fresh Debian or Ubuntu to where copipe builds.
#   copipe_setup PART...   installs what is missing for the parts (examples, tests, bench), through apt-get
#   copipe_clang           prints the name of a clang++ 19 or newer with sanitizers, installed if it can be, or nothing
#   copipe_jobs            prints how many compilers this machine can run at once
#   copipe_train_gpt       builds the example trainer, TRAIN_GPT

copipe_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CXX=${CXX:-g++}
export CXX

say() { printf 'copipe: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 2
}

have_command() { command -v "$1" >/dev/null 2>&1; }
have_header() {
    have_command "$CXX" && printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" | "$CXX" -E -x c++ - >/dev/null 2>&1
}
have_boost() {
    have_header boost/asio.hpp &&
        printf '#include <boost/version.hpp>\n#if BOOST_VERSION < 108100\n#error\n#endif\n' |
        "$CXX" ${Boost_ROOT:+-isystem "$Boost_ROOT/include"} -E -x c++ - >/dev/null 2>&1
}

# Root, or a sudo that asks for no password or has a terminal to ask at.
can_install() {
    ((EUID == 0)) && return
    have_command sudo && { sudo -n true || : >/dev/tty; } 2>/dev/null
}
# Runs as root, by sudo where one is not root; what it prints goes to a log, of which the end is shown when it fails.
as_root() {
    local log=$copipe_root/build/setup.log sudo=
    mkdir -p "$copipe_root/build"
    ((EUID == 0)) || sudo=sudo
    $sudo env DEBIAN_FRONTEND=noninteractive "$@" </dev/null >"$log" 2>&1 && return
    tail -n 12 "$log" >&2
    return 1
}
apt_update() { as_root apt-get -q -o DPkg::Lock::Timeout=300 update; }
apt_install() { as_root apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"; }
apt_candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | grep -v '(none)'; }

# The package that brings Boost 1.81 or newer: the system's own where it is new enough, else a numbered one beside it.
boost_package() {
    local version
    version=$(apt_candidate libboost-dev) || version=0
    if dpkg --compare-versions "$version" ge 1.81; then
        echo libboost-dev
        return
    fi
    apt-cache search --names-only '^libboost1\.[0-9]+-dev$' | cut -d' ' -f1 | sort -V | while read -r package; do
        version=$(apt_candidate "$package") && dpkg --compare-versions "$version" ge 1.81 && echo "$package"
    done | tail -n 1
}

# Debian's numbered Boost packages conflict with each other. Where an older one is installed it stays, and the newer
# headers are unpacked into the build folder.
install_boost() {
    local package folder=$copipe_root/build/boost
    if [[ -e $folder/usr/include/boost/version.hpp ]]; then
        export Boost_ROOT=$folder/usr
        return
    fi
    package=$(boost_package)
    [[ $package ]] || die "copipe needs Boost 1.81 or newer and this system's packages have none; install it by hand."
    if apt-get -s install --no-install-recommends "$package" 2>/dev/null | grep -q '^Remv'; then
        say "an older Boost is installed and stays; the headers of $package go to $folder"
        mkdir -p "$folder"
        (cd "$folder" && apt-get -qq download "$package" && dpkg-deb -x "$package"_*.deb .) >&2 ||
            die "could not download $package"
        rm -f -- "$folder/$package"_*.deb
        export Boost_ROOT=$folder/usr
    else
        apt_install "$package" || die "could not install $package"
    fi
}

copipe_setup() {
    local part missing=()
    have_command g++ || have_command "$CXX" || missing+=(g++)
    have_command cmake || missing+=(cmake)
    have_command ninja || missing+=(ninja-build)
    have_header nlohmann/json.hpp || missing+=(nlohmann-json3-dev)
    for part in "$@"; do
        case $part in
        examples)
            have_header CLI/CLI.hpp || missing+=(libcli11-dev)
            have_header cblas.h && have_header openblas_config.h || missing+=(libopenblas-dev)
            ;;
        tests)
            have_header catch2/catch_all.hpp || have_header catch2/catch.hpp || missing+=(catch2)
            have_command git || missing+=(git)
            ;;
        bench)
            have_header benchmark/benchmark.h || missing+=(libbenchmark-dev)
            ;;
        esac
    done
    local old=$copipe_root/build/boost/usr
    if ! have_boost && [[ -e $old/include/boost/version.hpp ]]; then export Boost_ROOT=$old; fi

    if ((${#missing[@]})) || ! have_boost; then
        have_command apt-get || die "missing here: ${missing[*]} and libboost-dev 1.81 or newer (Debian's names);" \
            "this system has no apt-get, so install them by hand and run this again."
        if ! can_install; then
            have_boost || missing+=('libboost1.81-dev (or libboost-dev where that is newer)')
            die "missing here: ${missing[*]}. Run this as root or as a user with sudo, or have them installed."
        fi
        say "installing what is missing: ${missing[*]}$(have_boost || echo ' Boost')"
        apt_update || say "apt-get update failed; going on with the lists that are there"
        if ((${#missing[@]})); then
            apt_install "${missing[@]}" || die "could not install: ${missing[*]}"
        fi
        have_boost || install_boost
    fi

    local version
    version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
    at_least "$version" 3.25 ||
        die "cmake here is $version, copipe needs 3.25 (Debian 12, Ubuntu 24.04 or newer have it)."
    if [[ $($CXX --version) != *clang* ]]; then
        version=$($CXX -dumpfullversion)
        at_least "$version" 12 || die "$CXX here is $version, copipe needs g++ 12 or clang++ 19 or newer."
    fi
    if have_command ccache; then export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER-ccache}; fi
}

copipe_clang() {
    local version
    for version in -19 -20 -21 -22 ''; do
        if has_sanitizers "clang++$version" && at_least "$("clang++$version" -dumpversion)" 19; then
            echo "clang++$version"
            return
        fi
    done
    if have_command apt-cache && apt_candidate clang-19 >/dev/null && can_install; then
        say "installing clang-19"
        if apt_install clang-19 libclang-rt-19-dev && has_sanitizers clang++-19; then echo clang++-19; fi
    fi
}
has_sanitizers() {
    have_command "$1" && printf 'int main() {}' | "$1" -fsanitize=address,undefined -x c++ - -o /dev/null 2>/dev/null
}

# Whether version $1 is at least $2, on systems without dpkg too.
at_least() { [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# As many as there are cores, but no more than memory holds: a translation unit of coroutines takes up to 1.5 GB.
# CMake's own variable overrides it.
copipe_jobs() {
    local cores memory
    if [[ ${CMAKE_BUILD_PARALLEL_LEVEL-} ]]; then
        echo "$CMAKE_BUILD_PARALLEL_LEVEL"
        return
    fi
    cores=$(nproc)
    memory=$(awk '/^MemAvailable/ { print int($2 / 1500000) }' /proc/meminfo)
    ((memory >= 1)) || memory=1
    echo $((cores < memory ? cores : memory))
}

# Builds train_gpt with all optimization and sets TRAIN_GPT to it, unless that names another build of it.
copipe_train_gpt() {
    [[ ${TRAIN_GPT-} ]] && return
    local build=$copipe_root/build/train
    copipe_setup examples
    mkdir -p "$build"
    say "building train_gpt (the first time takes a few minutes; log: $build/build.log)"
    if ! (cd "$copipe_root" &&
        cmake --preset release -B "$build" -DCOPIPE_BUILD_TESTS=OFF -DCOPIPE_BUILD_BENCH=OFF &&
        cmake --build "$build" --target train_gpt -j "$(copipe_jobs)") >"$build/build.log" 2>&1; then
        tail -n 40 "$build/build.log" >&2
        die "train_gpt could not be built."
    fi
    TRAIN_GPT=$build/examples/gpt/train_gpt
}
