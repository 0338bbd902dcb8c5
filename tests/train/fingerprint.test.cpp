// SPDX-License-Identifier: Apache-2.0
#include "copipe/train/fingerprint.hpp"
#include "catch.hpp"
#include "copipe/device/host.hpp"
#include "says.hpp"
#include "temporary_folder.hpp"

#include <cstdlib>
#include <memory>
#include <string>

using namespace copipe;

namespace {

auto fingerprint_of(simulated_behaviour const& how) -> fingerprint {
    simulation clock;
    simulated_device dev{clock, how};
    auto& compute = dev.open_stream("compute");
    return take_fingerprint(dev, compute, dev.open_link(1));
}

} // namespace

TEST_CASE("the fingerprint of a simulated device tells its slowness and the rate of its links exactly") {
    fingerprint const fast = fingerprint_of({.seconds_per_byte = 1e-9});
    CHECK(fast.small_product == Approx(2e12));
    CHECK(fast.large_product == Approx(2e12));
    CHECK(fast.link == Approx(1e9));
    CHECK(fast.memory == 0); // copies take no time there
    fingerprint const slow = fingerprint_of({.stretch = [](double, double seconds) { return 3 * seconds; }});
    CHECK(slow.small_product == Approx(fast.small_product / 3));
    CHECK(slow.link == 0);
}

TEST_CASE("a probe takes the fastest of its jobs") {
    simulation clock;
    int jobs = 0;
    auto const third_is_fast = [&jobs](double, double seconds) { return seconds * (++jobs == 3 ? 1 : 5); };
    simulated_device dev{clock, {.stretch = third_is_fast}};
    device_probe<simulated_device> probe{dev.open_stream("compute"), 100};
    probe.start();
    CHECK(jobs == 8);
    CHECK(probe.seconds() == Approx(1e-6));
}

TEST_CASE("the fingerprint of the host has a rate for everything, and a device slowed down computes as much slower") {
    host_device dev;
    auto& compute = dev.open_stream("compute");
    auto& link = dev.open_link(1);
    fingerprint const found = take_fingerprint(dev, compute, link);
    for (double const each :
         {found.small_product, found.large_product, found.memory, found.copy, found.link, found.free_bytes})
        CHECK(each > 0);
    CHECK(dev.memory_in_use() == 0);
    dev.slow_down(8);
    bool slower = false; // by 8, but the machine may have other things to do
    for (int i = 0; i < 5 && !slower; ++i)
        slower = take_fingerprint(dev, compute, link).large_product < found.large_product / 2;
    CHECK(slower);
}

TEST_CASE("fingerprints are kept in a file by the names of devices") {
    temporary_folder const folder;
    fingerprint_file const file{folder / "fingerprints"};
    CHECK_FALSE(file.find("a GPU"));
    fingerprint const one{.small_product = 1.0 / 3, .large_product = 2, .memory = 3, .copy = 4, .link = 5e11};
    file.keep("a GPU", one);
    file.keep("another GPU", {});
    REQUIRE(file.find("a GPU"));
    CHECK(*file.find("a GPU") == one);
    CHECK(file.find("another GPU"));
    CHECK_FALSE(file.find("GPU"));
    CHECK_FALSE(fingerprint_file{"/dev/zero"}.find("a GPU")); // no line ends there
    CHECK_THROWS_WITH(fingerprint_file{folder / "missing/file"}.keep("a", one), says("missing/file"));
}

TEST_CASE("a device is measured once and then known from the file, but for its free memory") {
    temporary_folder const folder;
    auto const path = folder / "fingerprints";
    host_device dev;
    auto& compute = dev.open_stream("compute");
    auto& link = dev.open_link(1);
    fingerprint const first = known_fingerprint(path, dev, compute, link);
    CHECK_FALSE(first.read);
    if (device_name(dev).empty()) return; // a machine that does not name its processor
    fingerprint const second = known_fingerprint(path, dev, compute, link);
    CHECK(second.read);
    CHECK(second.large_product == first.large_product);
    CHECK(second.free_bytes > 0);
    CHECK_FALSE(known_fingerprint("", dev, compute, link).read);
}

TEST_CASE("fingerprints are kept in the user's cache") {
    temporary_folder const folder;
    auto const set = [](char const* name, std::string const& value) { return ::setenv(name, value.c_str(), 1); };
    auto const old_cache = std::getenv("XDG_CACHE_HOME"), old_home = std::getenv("HOME");
    std::string const cache = old_cache ? old_cache : "", home = old_home ? old_home : "";
    REQUIRE(set("XDG_CACHE_HOME", folder / "cache") == 0);
    CHECK(fingerprint_cache() == folder / "cache/copipe/fingerprints");
    REQUIRE(set("XDG_CACHE_HOME", "") == 0);
    REQUIRE(set("HOME", folder / "home") == 0);
    CHECK(fingerprint_cache() == folder / "home/.cache/copipe/fingerprints");
    put_contents(folder / "file", "no folder");
    REQUIRE(set("HOME", folder / "file") == 0);
    CHECK(fingerprint_cache().empty());
    set("XDG_CACHE_HOME", cache);
    set("HOME", home);
}
