// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/async/task.hpp"
#include "copipe/device/host.hpp"
#include "copipe/model/partition.hpp"
#include "copipe/model/stage.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

using host = context<host_device>;

/// y = a x + b, element by element; a and b are single numbers.
struct line {
    struct saved {
        tensor x, dy;
    };
    parameter a{.name = "a", .sizes = {1}, .first = {.mean = 1, .deviation = 0.1}};
    parameter b{.name = "b", .sizes = {1}, .first = normal(0.1)};
    std::string* log = nullptr;

    auto parameters() { return std::array{&a, &b}; }
    auto forward(host& c, tensor x, saved& s) -> tensor {
        tensor y = c.make(x.sizes());
        c.stream.launch([a_ = a.value.data(), b_ = b.value.data(), in = x.data(), out = y.data(), n = x.count()] {
            for (std::size_t i = 0; i < n; ++i) out[i] = *a_ * in[i] + *b_;
        });
        s.x = std::move(x);
        return y;
    }
    auto backward_input(host& c, tensor dy, saved& s) -> tensor {
        if (log) *log += "I";
        tensor dx = c.make(dy.sizes());
        c.stream.launch([a_ = a.value.data(), d = dy.data(), out = dx.data(), n = dy.count()] {
            for (std::size_t i = 0; i < n; ++i) out[i] = *a_ * d[i];
        });
        s.dy = std::move(dy);
        return dx;
    }
    void backward_weight(host& c, saved& s) {
        if (log) *log += "W";
        c.stream.launch([ga = a.gradient.data(), gb = b.gradient.data(), x = s.x.data(), d = s.dy.data(),
                         n = s.x.count()] {
            for (std::size_t i = 0; i < n; ++i) {
                *ga += x[i] * d[i];
                *gb += d[i];
            }
        });
    }
};

struct tied_table {
    struct saved {};
    parameter table{.name = "table", .sizes = {50}, .first = normal(1), .tie = "table"};
    auto parameters() { return std::array{&table}; }
    static auto forward(host&, tensor x, saved&) -> tensor { return x; }
    static auto backward_input(host&, tensor dy, saved&) -> tensor { return dy; }
    static void backward_weight(host&, saved&) {}
};

auto lines(int count) -> model<host_device> {
    model<host_device> layers;
    for (int i = 0; i < count; ++i) layers.add(line{});
    return layers;
}
auto values_of(parameter const& p) -> std::vector<float> { return {p.value.data(), p.value.data() + p.count()}; }

} // namespace

TEST_CASE("the first values of a layer do not depend on the stage it is in, but on the seed and its number") {
    auto const drawn = [](partition const& cut, std::uint64_t seed) {
        host_device dev;
        model<host_device> const layers = lines(cut.layers());
        std::vector<std::vector<float>> values;
        for (int part = 0; part < cut.stages(); ++part) {
            stage<host_device> placed(layers, cut.first(part), cut.last(part), 1, seed, dev.open_stream("s"));
            CHECK(placed.first() == cut.first(part));
            CHECK(placed.size() == cut.last(part) - cut.first(part));
            for (int number = cut.first(part); number < cut.last(part); ++number) {
                for (parameter const* p : placed.layer_at(number).parameters()) values.push_back(values_of(*p));
            }
        }
        return values;
    };
    auto const whole = drawn(partition::even(6, 1), 5);
    CHECK(drawn(partition::even(6, 2), 5) == whole);
    CHECK(drawn(partition::given({0, 1, 2, 6}, 6), 5) == whole);
    CHECK(drawn(partition::even(6, 1), 6) != whole);
    for (std::size_t i = 0; i < whole.size(); ++i) {
        for (std::size_t j = 0; j < i; ++j) CHECK(whole[i] != whole[j]);
    }
}

TEST_CASE("tied parameters start equal, wherever they are") {
    host_device dev;
    model<host_device> layers;
    layers.add(tied_table{}).add(line{}).add(tied_table{});
    stage<host_device> first(layers, 0, 2, 1, 3, dev.open_stream("s"));
    stage<host_device> second(layers, 2, 3, 1, 3, dev.open_stream("s"));
    CHECK(values_of(*first.layer_at(0).parameters()[0]) == values_of(*second.layer_at(2).parameters()[0]));
}

TEST_CASE("a stage runs its layers forward in order and backward in reverse, and its gradients are right") {
    for (bool at_once : {true, false}) {
        host_device dev;
        host_stream& s = dev.open_stream("s");
        model<host_device> const layers = lines(3);
        stage<host_device> placed(layers, 0, 3, 2, 7, s);
        std::array<float, 3> a{}, b{};
        std::size_t const parameters_memory = dev.memory_in_use();
        for (std::size_t i = 0; i < 3; ++i) {
            auto const parameters = placed.layer_at(static_cast<int>(i)).parameters();
            a[i] = *parameters[0]->value.data();
            b[i] = *parameters[1]->value.data();
            for (parameter* p : parameters) s.zero(p->gradient.data(), p->gradient.bytes());
        }
        executor exec;
        host c{.stream = s};
        std::array<float, 2> out{}, back{};
        auto const body = [&]() -> task<> {
            tensor x = c.make({2});
            s.launch([to = x.data()] { to[0] = 2, to[1] = -1; });
            tensor const y = co_await placed.forward(c, 1, x);
            s.copy(out.data(), y.data(), sizeof out);
            tensor dy = c.make({2});
            s.launch([to = dy.data()] { to[0] = 1, to[1] = 10; });
            tensor const dx = co_await placed.backward(c, 1, dy, at_once);
            s.copy(back.data(), dx.data(), sizeof back);
            if (!at_once) co_await placed.backward_weight(c, 1);
        };
        run(exec, body());
        s.synchronize();
        auto const through = [&](float x) { return a[2] * (a[1] * (a[0] * x + b[0]) + b[1]) + b[2]; };
        CHECK(out[0] == Approx(through(2)));
        CHECK(out[1] == Approx(through(-1)));
        CHECK(back[0] == Approx(a[0] * a[1] * a[2]));
        CHECK(back[1] == Approx(a[0] * a[1] * a[2] * 10));
        // d(sum of dy*y) by the middle layer's numbers
        auto const gradient_of = [&](int layer, std::size_t p) {
            return *placed.layer_at(layer).parameters()[p]->gradient.data();
        };
        auto const input_of_1 = [&](float x) { return a[0] * x + b[0]; };
        CHECK(gradient_of(1, 0) == Approx(a[2] * (input_of_1(2) + 10 * input_of_1(-1))));
        CHECK(gradient_of(1, 1) == Approx(a[2] * 11));
        CHECK(gradient_of(2, 1) == Approx(11));
        CHECK(dev.memory_in_use() == parameters_memory); // nothing saved remains
    }
}

TEST_CASE("a full backward takes each layer's weight gradient as soon as it can be had") {
    host_device dev{host_execution::inline_};
    host_stream& s = dev.open_stream("s");
    std::string log;
    line noted;
    noted.log = &log;
    model<host_device> layers;
    layers.add(noted).add(noted);
    stage<host_device> placed(layers, 0, 2, 1, 0, s);
    executor exec;
    host c{.stream = s};
    auto const body = [&](bool at_once) -> task<> {
        tensor x = c.make({1});
        tensor y = co_await placed.forward(c, 0, x);
        static_cast<void>(co_await placed.backward(c, 0, y, at_once));
        log += ".";
        if (!at_once) co_await placed.backward_weight(c, 0);
    };
    run(exec, body(true));
    CHECK(log == "IWIW.");
    log.clear();
    run(exec, body(false));
    CHECK(log == "II.WW");
}

TEST_CASE("an evaluation keeps nothing, and drop_all forgets what a failed step left") {
    host_device dev{host_execution::inline_};
    host_stream& s = dev.open_stream("s");
    model<host_device> const layers = lines(3);
    stage<host_device> placed(layers, 0, 3, 2, 7, s);
    std::size_t const before = dev.memory_in_use();
    executor exec;
    host c{.stream = s, .training = false};
    auto const forward = [&]() -> task<> {
        tensor x = c.make({100});
        static_cast<void>(co_await placed.forward(c, 0, x));
        static_cast<void>(co_await placed.forward(c, 1, x));
    };
    run(exec, forward());
    CHECK(dev.memory_in_use() == before);
    c.training = true;
    run(exec, forward());
    CHECK(dev.memory_in_use() > before);
    placed.drop_all(2);
    CHECK(dev.memory_in_use() == before);
}
