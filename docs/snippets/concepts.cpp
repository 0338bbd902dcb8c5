// SPDX-License-Identifier: Apache-2.0
// The examples of docs/concepts.md: a type of one's own for each concept, and a trainer that is made of them.
#include "copipe/device/device.hpp"
#include "copipe/device/host.hpp"
#include "copipe/model/layer.hpp"
#include "copipe/pipeline/dataset.hpp"
#include "copipe/pipeline/observer.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/train/learning_rate.hpp"
#include "copipe/train/optimizer.hpp"
#include "copipe/train/trainer.hpp"
#include "copipe/transport/in_process.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <memory_resource>
#include <span>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

namespace {

// A device: work runs where it is enqueued, so that every event is done as soon as it is recorded.

class immediate_event {
public:
    immediate_event() = default;
    explicit immediate_event(double time) noexcept : time_(time) {}

    /// An await that never waits.
    struct completed {
        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return true; }
        static constexpr void await_suspend(std::coroutine_handle<>, copipe::environment const*) noexcept {}
        static constexpr void await_resume() noexcept {}
    };
    [[nodiscard]] static constexpr auto done() noexcept -> bool { return true; }
    [[nodiscard]] auto time() const noexcept -> double { return time_; }
    [[nodiscard]] static constexpr auto completion() noexcept -> completed { return {}; }
    [[nodiscard]] static constexpr auto on_completion(copipe::waiter&) noexcept -> bool { return false; }
    static constexpr void check() noexcept {} // a launch that fails has thrown already

private:
    double time_ = 0;
};
static_assert(copipe::device_event<immediate_event>);

/// Memory from the heap, counted. Work is done before the host goes on: a freed block is free for everyone.
class counted_memory final : public std::pmr::memory_resource {
public:
    std::size_t in_use = 0;
    std::size_t peak = 0;

private:
    auto do_allocate(std::size_t bytes, std::size_t alignment) -> void* override {
        void* const block = std::pmr::new_delete_resource()->allocate(bytes, alignment);
        peak = std::max(peak, in_use += bytes);
        return block;
    }
    void do_deallocate(void* block, std::size_t bytes, std::size_t alignment) override {
        in_use -= bytes;
        std::pmr::new_delete_resource()->deallocate(block, bytes, alignment);
    }
    [[nodiscard]] auto do_is_equal(memory_resource const& other) const noexcept -> bool override {
        return this == &other;
    }
};

class immediate_stream {
public:
    using event = immediate_event;
    explicit immediate_stream(counted_memory& memory) noexcept : memory_(&memory) {}

    template <std::invocable F>
    void launch(F work) {
        work();
    }
    void copy(void* to, void const* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
    void zero(void* to, std::size_t bytes) { std::memset(to, 0, bytes); }
    void add(float* sum, float const* addend, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) sum[i] += addend[i];
    }
    [[nodiscard]] auto record(copipe::timing = copipe::timing::off) -> immediate_event {
        return immediate_event{copipe::host_seconds()};
    }
    void wait(immediate_event const&) noexcept {}
    void synchronize() noexcept {}
    [[nodiscard]] auto memory() const noexcept -> std::pmr::memory_resource* { return memory_; }

private:
    counted_memory* memory_;
};
static_assert(copipe::device_stream<immediate_stream>);

class immediate_device {
public:
    using stream = immediate_stream;
    using event = immediate_event;

    [[nodiscard]] auto open_stream(std::string_view) -> stream& { return streams_.emplace_back(memory_); }
    [[nodiscard]] auto open_link(int) -> stream& { return open_stream("link"); }
    [[nodiscard]] auto now() const noexcept -> double { return copipe::host_seconds(); }
    [[nodiscard]] auto memory_in_use() const noexcept -> std::size_t { return memory_.in_use; }
    [[nodiscard]] auto peak_memory() const noexcept -> std::size_t { return memory_.peak; }
    void reset_peak_memory() noexcept { memory_.peak = memory_.in_use; }

private:
    counted_memory memory_{};
    std::deque<stream> streams_{}; // references stay valid as it grows
};
static_assert(copipe::device<immediate_device>);

/// What a trainer needs of a device besides: the sum of a gradient's squares, for the global norm.
void square_sum(immediate_stream&, copipe::parameter const& p, double* out) {
    *out = 0;
    float const* const gradient = p.gradient.data();
    for (std::size_t i = 0; i < p.count(); ++i)
        *out += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
}

// A transport: in_process, and what crosses ranks is counted.

template <copipe::device Device>
class counted {
public:
    static inline std::atomic<std::size_t> bytes{0}; // the trainer owns its transport: what it counts is kept outside

    class endpoint {
    public:
        using parcel = typename copipe::in_process<Device>::parcel;
        explicit endpoint(typename copipe::in_process<Device>::endpoint inner) : inner_(std::move(inner)) {}

        auto send(int to, copipe::envelope const& what, void const* data, typename Device::event const& ready) {
            bytes += what.bytes;
            return inner_.send(to, what, data, ready);
        }
        auto arrival(int from, std::uint64_t identity) { return inner_.arrival(from, identity); }
        auto accept(parcel& arrived, void* to, typename Device::stream& stream, copipe::timing timed) {
            return inner_.accept(arrived, to, stream, timed);
        }
        auto all_reduce(std::span<double> values) { return inner_.all_reduce(values); }
        void abort() { inner_.abort(); }
        void reset() { inner_.reset(); }

    private:
        typename copipe::in_process<Device>::endpoint inner_;
    };

    // What the trainer asks of the whole, besides the endpoint: made for a number of ranks, connects each.
    explicit counted(int ranks) : all_(ranks) {}
    [[nodiscard]] auto connect(int rank) -> endpoint { return endpoint{all_.connect(rank)}; }

private:
    copipe::in_process<Device> all_;
};
static_assert(copipe::transport_endpoint<counted<immediate_device>::endpoint, immediate_device>);

// Layers. Written as templates, they serve every device whose streams launch functions.

using copipe::tensor;

/// Rows of `width` floats, each column times a weight of its own.
struct gain {
    std::int64_t width;
    copipe::parameter weight{.name = "weight", .sizes = {width}, .first = copipe::constant(1)};
    struct saved { // of one micro-batch, from forward to backward_weight
        tensor x, dy;
    };
    auto parameters() { return std::array{&weight}; }

    template <copipe::device Device>
    auto forward(copipe::context<Device>& c, tensor x, saved& s) -> tensor {
        s.x = x;
        tensor y = c.make(x.sizes());
        c.stream.launch([n = x.count(), w = weight.value.data(), x_ = x.data(), y_ = y.data(), k = weight.count()] {
            for (std::size_t i = 0; i < n; ++i) y_[i] = w[i % k] * x_[i];
        });
        return y;
    }
    template <copipe::device Device>
    auto backward_input(copipe::context<Device>& c, tensor dy, saved& s) -> tensor {
        s.dy = dy;
        tensor dx = c.make(dy.sizes());
        c.stream.launch([n = dy.count(), w = weight.value.data(), d = dy.data(), dx_ = dx.data(), k = weight.count()] {
            for (std::size_t i = 0; i < n; ++i) dx_[i] = w[i % k] * d[i];
        });
        return dx;
    }
    template <copipe::device Device>
    void backward_weight(copipe::context<Device>& c, saved& s) {
        c.stream.launch(
            [n = s.x.count(), x = s.x.data(), d = s.dy.data(), dw = weight.gradient.data(), k = weight.count()] {
                for (std::size_t i = 0; i < n; ++i) dw[i % k] += x[i] * d[i]; // adds
            });
    }
};
static_assert(copipe::layer<gain, immediate_device> && copipe::layer<gain, copipe::host_device>);

/// The loss: half the mean squared distance to the target. No parameters: no `parameters()`, no `backward_weight`.
struct distance {
    struct saved {
        tensor difference;
    };
    template <copipe::device Device>
    auto forward(copipe::context<Device>& c, tensor x, saved& s) -> tensor {
        s.difference = c.make(x.sizes());
        tensor loss = c.make({1});
        c.stream.launch([n = x.count(), y = x.data(), t = c.target.data(), d = s.difference.data(), l = loss.data()] {
            *l = 0;
            for (std::size_t i = 0; i < n; ++i) {
                d[i] = y[i] - t[i];
                *l += d[i] * d[i] / (2 * static_cast<float>(n));
            }
        });
        return loss;
    }
    template <copipe::device Device>
    auto backward_input(copipe::context<Device>& c, tensor /*empty: nothing follows*/, saved& s) -> tensor {
        tensor dx = c.make(s.difference.sizes());
        c.stream.launch([n = dx.count(), d = s.difference.data(), out = dx.data(), share = c.scale] {
            for (std::size_t i = 0; i < n; ++i) out[i] = d[i] * share / static_cast<float>(n);
        });
        return dx;
    }
};
static_assert(copipe::layer<distance, immediate_device>);

/// A stream of a layer's own. Copying a layer copies its declaration: the copy opens a stream when it first needs one.
class side_stream {
public:
    side_stream() = default;
    side_stream(side_stream const&) noexcept {}
    auto operator=(side_stream const&) -> side_stream& = delete;
    auto get() -> copipe::host_stream& {
        if (!device_) stream_ = &(device_ = std::make_unique<copipe::host_device>())->open_stream("exchange");
        return *stream_;
    }

private:
    std::unique_ptr<copipe::host_device> device_{};
    copipe::host_stream* stream_ = nullptr;
};

/// A coroutine layer: rows are exchanged (here: reversed) on another stream. In an overlapped pair the partner chunk
/// takes the compute stream at the `co_await`.
struct exchange {
    using context = copipe::context<copipe::host_device>;
    struct saved {};
    side_stream side;

    auto forward(context& c, tensor x, saved&) -> copipe::task<tensor> { return reversed(c, std::move(x)); }
    auto backward_input(context& c, tensor dy, saved&) -> copipe::task<tensor> { return reversed(c, std::move(dy)); }

    auto reversed(context& c, tensor x) -> copipe::task<tensor> {
        tensor y = c.make(x.sizes()); // first the memory, because earlier work of the compute stream may still use it,
        side.get().wait(c.stream.record()); // then an event that covers that work and whoever computes x
        side.get().launch([n = x.size(0), w = x.size(1), from = x.data(), to = y.data()] {
            for (std::int64_t r = 0; r < n; ++r) std::copy_n(from + r * w, w, to + (n - 1 - r) * w);
        });
        copipe::host_event const arrived = side.get().record();
        co_await c.follow(arrived); // later work of this chunk comes after it; the host does not wait
        co_return y;                // x was kept until here, and y and x are the compute stream's again
    }
};
static_assert(copipe::layer<exchange, copipe::host_device>);

// A dataset: numbered micro-batches, the same number always the same data.

struct noise {
    [[nodiscard]] static auto size() -> std::uint64_t { return 64; } // micro-batches in an epoch
    static void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) {
        auto const rows = static_cast<std::int64_t>(2 + index % 3); // shapes may differ
        float* const x = input.resize<float>({rows, 4}, copipe::dtype::f32);
        float* const t = target.resize<float>({rows, 4}, copipe::dtype::f32);
        copipe::counter_random const random{7, index};
        for (std::int64_t i = 0; i < 4 * rows; ++i) {
            x[i] = static_cast<float>(random.normal(static_cast<std::uint64_t>(i)));
            t[i] = static_cast<float>(i % 4) * x[i];
        }
    }
    /// May be left out. Micro-batches of unequal size: each counts by its rows.
    [[nodiscard]] static auto weight(std::uint64_t index) -> double { return static_cast<double>(2 + index % 3); }
};
static_assert(copipe::dataset<noise>);

// An observer: the longest chunk of each rank.

class longest_chunk {
public:
    explicit longest_chunk(int ranks) : seconds_(static_cast<std::size_t>(ranks)) {}
    void record(copipe::span const& measured) noexcept { // a rank's own thread, and its own element
        if (!copipe::is_chunk(measured.kind)) return;
        double& longest = seconds_[static_cast<std::size_t>(measured.rank)];
        longest = std::max(longest, measured.seconds());
    }
    [[nodiscard]] auto of(int rank) const -> double { return seconds_.at(static_cast<std::size_t>(rank)); }

private:
    std::vector<double> seconds_;
};
static_assert(copipe::observer<longest_chunk>);

// An optimizer: gradient descent with momentum.

struct momentum {
    static constexpr std::array<std::string_view, 1> state_names{"velocity"};
    float kept = 0.9F;

    template <class Stream>
    void update(Stream& stream, copipe::parameter& p, std::uint64_t /*step, from 1*/, double rate, double scale) const {
        stream.launch([n = p.count(), w = p.value.data(), g = p.gradient.data(), v = p.state[0].data(), keep = kept,
                       lr = static_cast<float>(rate), f = static_cast<float>(scale)] {
            for (std::size_t i = 0; i < n; ++i) w[i] -= lr * (v[i] = keep * v[i] + f * g[i]);
        });
    }
};
static_assert(copipe::optimizer<momentum, copipe::host_stream> && copipe::optimizer<momentum, immediate_stream>);

// A learning-rate schedule: any function of the number of steps done.

struct halving {
    double first;
    std::uint64_t every;
    [[nodiscard]] auto operator()(std::uint64_t step) const -> double {
        return first / static_cast<double>(std::uint64_t{1} << step / every);
    }
};
static_assert(copipe::learning_rate_schedule<halving>);

// All of them together.

void expect(bool holds, char const* what) {
    if (!holds) throw std::logic_error(what);
}

void all_together() {
    copipe::model<immediate_device> layers;
    layers.add(gain{4}).add(gain{4}).add(distance{});
    longest_chunk longest{2};
    copipe::trainer<copipe::one_f_one_b, immediate_device, copipe::static_partition, momentum, counted> trainer{
        layers,
        {.ranks = 2,
         .micro_batches = 4,
         .learning_rate = halving{0.2, 100},
         .listener = copipe::observer_ref{longest}}};
    double const before = trainer.evaluate(noise{}, 4);
    trainer.fit(noise{}, copipe::epochs{5});
    expect(trainer.evaluate(noise{}, 4) < 0.2 * before, "the loss falls");
    expect(counted<immediate_device>::bytes > 0, "the transport counts");
    expect(longest.of(0) > 0 && longest.of(1) > 0, "both ranks report");
}

/// Reversing rows twice changes nothing: neither the loss nor, after a step, the next loss.
void coroutine_layers_keep_the_order_of_work() {
    copipe::model<copipe::host_device> plain, reversing;
    plain.add(gain{4}).add(gain{4}).add(distance{});
    reversing.add(gain{4}).add(exchange{}).add(exchange{}).add(gain{4}).add(distance{});
    copipe::trainer<copipe::dualpipe_v> one{plain, {.ranks = 1, .micro_batches = 8}};
    copipe::trainer<copipe::dualpipe_v> other{reversing, {.ranks = 1, .micro_batches = 8}};
    for (int step = 0; step < 5; ++step)
        expect(one.step(noise{}).loss == other.step(noise{}).loss, "the losses differ");
}

} // namespace

auto main() -> int {
    try {
        all_together();
        coroutine_layers_keep_the_order_of_work();
    } catch (std::exception const& failure) {
        std::fprintf(stderr, "%s\n", failure.what());
        return 1;
    }
}
