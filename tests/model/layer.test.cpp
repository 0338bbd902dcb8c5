// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/device/host.hpp"
#include "copipe/model/layer.hpp"

#include <array>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

using namespace copipe;

namespace {

using host = context<host_device>;

struct plain {
    struct saved {
        tensor x;
    };
    parameter w{.name = "w", .sizes = {2}};
    std::string* log = nullptr;
    auto parameters() { return std::array{&w}; }
    auto forward(host&, tensor x, saved& s) -> tensor {
        if (log) *log += "F";
        s.x = x;
        return x;
    }
    auto backward_input(host&, tensor dy, saved& s) -> tensor {
        if (log) *log += s.x ? "I" : "?";
        return dy;
    }
    void backward_weight(host&, saved& s) {
        if (log) *log += s.x ? "W" : "?";
    }
};
struct coroutines {
    struct saved {};
    parameter w{.name = "w", .sizes = {2}};
    std::string* log = nullptr;
    auto parameters() { return std::array{&w}; }
    auto forward(host&, tensor x, saved&) -> task<tensor> {
        co_await let_partner_run{};
        *log += "F";
        co_return x;
    }
    auto backward_input(host&, tensor dy, saved&) -> task<tensor> {
        co_await let_partner_run{};
        *log += "I";
        co_return dy;
    }
    auto backward_weight(host&, saved&) -> task<> {
        co_await let_partner_run{};
        *log += "W";
    }
};
struct without_parameters {
    struct saved {};
    static auto forward(host&, tensor x, saved&) -> tensor { return x; }
    static auto backward_input(host&, tensor dy, saved&) -> tensor { return dy; }
};

// Each of these lacks one thing.
struct no_saved {
    static auto forward(host&, tensor x, int&) -> tensor { return x; }
    static auto backward_input(host&, tensor dy, int&) -> tensor { return dy; }
};
struct no_backward {
    struct saved {};
    static auto forward(host&, tensor x, saved&) -> tensor { return x; }
};
struct wrong_result {
    struct saved {};
    static auto forward(host&, tensor, saved&) -> float { return 0; }
    static auto backward_input(host&, tensor dy, saved&) -> tensor { return dy; }
};
struct parameters_without_backward_weight {
    struct saved {};
    parameter w{};
    auto parameters() { return std::array{&w}; }
    static auto forward(host&, tensor x, saved&) -> tensor { return x; }
    static auto backward_input(host&, tensor dy, saved&) -> tensor { return dy; }
};
struct weight_that_returns : plain {
    static auto backward_weight(host&, saved&) -> tensor { return {}; }
};
struct not_copyable : without_parameters {
    std::unique_ptr<int> owned{};
};
struct saved_without_default : without_parameters {
    struct saved {
        explicit saved(int) {}
    };
    static auto forward(host&, tensor x, saved&) -> tensor { return x; }
    static auto backward_input(host&, tensor dy, saved&) -> tensor { return dy; }
};

/// Counts the copies that live.
struct counted {
    struct saved {
        std::shared_ptr<int> token{};
    };
    std::shared_ptr<int> alive = std::make_shared<int>(0);
    auto forward(host&, tensor x, saved& s) const -> tensor {
        s.token = alive;
        return x;
    }
    static auto backward_input(host&, tensor dy, saved&) -> tensor { return dy; }
};

} // namespace

TEST_CASE("layers of functions, of coroutines and without parameters are layers") {
    STATIC_REQUIRE(layer<plain, host_device>);
    STATIC_REQUIRE(layer<coroutines, host_device>);
    STATIC_REQUIRE(layer<without_parameters, host_device>);
    STATIC_REQUIRE(layer<counted, host_device>);
}

TEST_CASE("what lacks a part of a layer is refused where it is added") {
    STATIC_REQUIRE_FALSE(layer<int, host_device>);
    STATIC_REQUIRE_FALSE(layer<no_saved, host_device>);
    STATIC_REQUIRE_FALSE(layer<no_backward, host_device>);
    STATIC_REQUIRE_FALSE(layer<wrong_result, host_device>);
    STATIC_REQUIRE_FALSE(layer<parameters_without_backward_weight, host_device>);
    STATIC_REQUIRE_FALSE(layer<weight_that_returns, host_device>);
    STATIC_REQUIRE_FALSE(layer<not_copyable, host_device>);
    STATIC_REQUIRE_FALSE(layer<saved_without_default, host_device>);
    STATIC_REQUIRE_FALSE(layer<plain, int>);
    STATIC_REQUIRE_FALSE(std::is_constructible_v<any_layer<host_device>, no_backward>);
}

TEST_CASE("a layer without its type runs functions and coroutines alike, each with its micro-batch's saved values") {
    host_device dev{host_execution::inline_};
    host_stream& s = dev.open_stream("s");
    executor exec;
    std::string log;
    plain functions;
    functions.log = &log;
    coroutines awaiting;
    awaiting.log = &log;
    model<host_device> layers;
    layers.add(functions).add(awaiting);
    REQUIRE(layers.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
        log.clear();
        any_layer<host_device> one = layers.make(i);
        one.reserve(2);
        REQUIRE(one.parameters().size() == 1);
        host c{.stream = s};
        auto const body = [&]() -> task<bool> {
            tensor const x = c.make({2});
            tensor const y = co_await one.forward(c, 1, x);
            tensor const dx = co_await one.backward_input(c, 1, y);
            co_await one.backward_weight(c, 1);
            one.drop(1);
            co_return dx.data() == x.data();
        };
        CHECK(run(exec, body()));
        CHECK(log == "FIW");
        CHECK(dev.memory_in_use() == 0);
    }
}

TEST_CASE("a model copies its prototypes: each placed layer has parameters of its own") {
    plain prototype;
    model<host_device> layers;
    layers.add(prototype);
    any_layer<host_device> const a = layers.make(0);
    any_layer<host_device> const b = layers.make(0);
    CHECK(a.parameters()[0] != b.parameters()[0]);
    CHECK(a.parameters()[0] != &prototype.w);
    CHECK(a.parameters()[0]->name == "w");
    CHECK_THROWS_AS(layers.make(1), std::out_of_range);
}

TEST_CASE("what a micro-batch saved is dropped with drop, slot by slot") {
    host_device dev{host_execution::inline_};
    host_stream& s = dev.open_stream("s");
    executor exec;
    counted prototype;
    any_layer<host_device> one{prototype};
    CHECK(prototype.alive.use_count() == 2);
    one.reserve(3);
    host c{.stream = s};
    auto const body = [&]() -> task<> {
        for (std::size_t slot = 0; slot < 3; ++slot) static_cast<void>(co_await one.forward(c, slot, tensor{}));
    };
    run(exec, body());
    CHECK(prototype.alive.use_count() == 5);
    one.drop(1);
    one.drop(1);
    CHECK(prototype.alive.use_count() == 4);
}

TEST_CASE("a layer told to recompute keeps nothing but its input, and runs forward again before its backward") {
    host_device dev{host_execution::inline_};
    host_stream& s = dev.open_stream("s");
    executor exec;
    std::string log;
    plain functions;
    functions.log = &log;
    coroutines awaiting;
    awaiting.log = &log;
    counted saving;
    model<host_device> layers;
    layers.add(functions).add(awaiting).add(saving);
    host c{.stream = s};
    for (std::size_t i = 0; i < layers.size(); ++i) {
        any_layer<host_device> one = layers.make(i);
        one.reserve(2);
        auto const saved = [&] { return saving.alive.use_count(); };
        auto const before = saved();
        auto const body = [&](bool again) -> task<bool> {
            log.clear();
            one.recompute(again);
            tensor const x = c.make({2});
            tensor const y = co_await one.forward(c, 1, x);
            bool right = saved() == before + (i == 2 && !again ? 1 : 0);
            tensor const dx = co_await one.backward_input(c, 1, y);
            right = right && saved() == before + (i == 2 ? 1 : 0);
            co_await one.backward_weight(c, 1);
            one.drop(1);
            co_return right && saved() == before && dx.data() == x.data();
        };
        for (bool const again : {true, false, true}) {
            CHECK(run(exec, body(again)));
            if (i < 2) CHECK(log == (again ? "FFIW" : "FIW"));
            CHECK(dev.memory_in_use() == 0);
        }
    }
}
