// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/pipeline/dataset.hpp"

#include <cstddef>
#include <cstdint>

using namespace copipe;

namespace {

struct weighted {
    static auto size() -> std::uint64_t { return 3; }
    static void load(std::uint64_t index, host_array& input, host_array& target) {
        *input.resize<std::int32_t>({1}, dtype::i32) = static_cast<std::int32_t>(index);
        *target.resize<float>({1}, dtype::f32) = 0.5F;
    }
    static auto weight(std::uint64_t index) -> double { return static_cast<double>(index); }
};
struct unweighted {
    static auto size() -> int { return 3; }
    static void load(std::uint64_t, host_array&, host_array&) {}
};
struct without_size {
    static void load(std::uint64_t, host_array&, host_array&) {}
};
struct needs_to_change {
    static auto size() -> std::uint64_t { return 3; }
    void load(std::uint64_t, host_array&, host_array&) {}
};

} // namespace

TEST_CASE("a dataset has a size and loads by number without changing, a weight is its choice") {
    STATIC_REQUIRE(dataset<weighted>);
    STATIC_REQUIRE(dataset<unweighted>);
    STATIC_REQUIRE_FALSE(dataset<without_size>);
    STATIC_REQUIRE_FALSE(dataset<needs_to_change>);
    STATIC_REQUIRE_FALSE(dataset<int>);
}

TEST_CASE("a dataset by reference loads and weighs like the dataset") {
    weighted const data;
    dataset_ref const ref{data};
    host_array input, target;
    ref.load(7, input, target);
    CHECK(*input.data<std::int32_t>() == 7);
    CHECK(*target.data<float>() == 0.5F);
    CHECK(ref.weight(7) == 7);
    unweighted const other;
    CHECK(dataset_ref{other}.weight(7) == 1);
}

TEST_CASE("a host array takes any shape and type, and keeps its memory when it shrinks and grows again") {
    CHECK(copipe::host_array{}.bytes() == 0);
    host_array array;
    float* const first = array.resize<float>({10, 3}, dtype::f32);
    CHECK(array.bytes() == 120);
    CHECK(array.type() == dtype::f32);
    for (std::size_t i = 0; i < 30; ++i) first[i] = static_cast<float>(i);
    auto* const second = array.resize<unsigned char>({5}, dtype::u8);
    CHECK(array.bytes() == 5);
    CHECK(array.sizes() == extents{5});
    CHECK(static_cast<void*>(second) == static_cast<void*>(first));
    CHECK(array.resize<float>({30}, dtype::f32) == first);
    static_cast<void>(array.resize<float>({0}, dtype::f32));
    CHECK(array.bytes() == 0);
}
