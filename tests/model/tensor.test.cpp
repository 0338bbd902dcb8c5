// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/device/host.hpp"
#include "copipe/model/tensor.hpp"

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <new>
#include <utility>

using namespace copipe;

TEST_CASE("copies of a tensor share its memory, and the last one returns it") {
    host_device dev;
    host_stream& s = dev.open_stream("s");
    {
        tensor a{*s.memory(), {4, 8}};
        CHECK(a);
        CHECK(a.bytes() == 128);
        CHECK(dev.memory_in_use() == 256);
        tensor b = a;
        tensor c;
        CHECK_FALSE(c);
        c = b;
        CHECK(c.data() == a.data());
        a = {};
        b = tensor{std::move(c)};
        CHECK_FALSE(c); // NOLINT: what a moved-from tensor is, is part of its promise
        CHECK(dev.memory_in_use() == 256);
        tensor const& itself = b;
        b = itself;
        CHECK(dev.memory_in_use() == 256);
        b = tensor{*s.memory(), {1000}};
        CHECK(dev.memory_in_use() == 4096);
    }
    CHECK(dev.memory_in_use() == 0);
}

TEST_CASE("a tensor knows its extents, element type and bytes") {
    host_device dev;
    host_stream& s = dev.open_stream("s");
    tensor const t{*s.memory(), {2, 3, 5}, dtype::bf16};
    CHECK(t.sizes() == extents{2, 3, 5});
    CHECK(t.size(1) == 3);
    CHECK(t.count() == 30);
    CHECK(t.type() == dtype::bf16);
    CHECK(t.bytes() == 60);
    CHECK(reinterpret_cast<std::uintptr_t>(t.data<char>()) % 64 == 0);
    tensor const view = t.reshaped({6, 5});
    CHECK(view.data<char>() == t.data<char>());
    CHECK(view.sizes() == extents{6, 5});
    CHECK(t.sizes() == extents{2, 3, 5});
    CHECK(bytes_of(dtype::f32) == 4);
    CHECK(bytes_of(dtype::i32) == 4);
    CHECK(bytes_of(dtype::u8) == 1);
    CHECK(name_of(dtype::bf16) == "BF16");
}

TEST_CASE("an empty tensor has no memory, no bytes and no address") {
    tensor const none;
    CHECK_FALSE(none);
    CHECK(none.data() == nullptr);
    CHECK(none.bytes() == 0);
    tensor const copy = none;
    CHECK_FALSE(copy);
}

TEST_CASE("a tensor of no elements is a tensor") {
    host_device dev;
    host_stream& s = dev.open_stream("s");
    tensor const none{*s.memory(), {0, 5}};
    CHECK(none);
    CHECK(none.bytes() == 0);
    CHECK(none.sizes() == extents{0, 5});
}

TEST_CASE("extents count, compare, iterate and print") {
    CHECK(extents{}.count() == 1);
    CHECK(extents{4, 64, 128}.count() == 32768);
    CHECK(extents{4, 0}.count() == 0);
    CHECK(extents{2, 3} == extents{2, 3});
    CHECK_FALSE(extents{2, 3} == extents{2, 3, 1});
    CHECK_FALSE(extents{2, 3} == extents{3, 2});
    CHECK(to_string(extents{4, 64, 128}) == "[4, 64, 128]");
    CHECK(to_string(extents{}) == "[]");
    std::int64_t sum = 0;
    for (std::int64_t each : extents{1, 2, 3, 4, 5}) sum += each;
    CHECK(sum == 15);
    STATIC_REQUIRE(extents{7, 3}.count() == 21);
}

TEST_CASE("when memory runs out the tensor throws and nothing is lost") {
    CHECK_THROWS_AS((tensor{*std::pmr::null_memory_resource(), {4}}), std::bad_alloc);
}
