// SPDX-License-Identifier: Apache-2.0
// A schedule policy of one's own: breadth-first pipelining (Lamy-Poirier, 2022), proved at compile time, drawn and run.
#include <copipe/copipe.hpp>

#include <cstdio>

// Two stages on each rank. All micro-batches pass a rank's first stage, then its second; backwards return the same way.
struct breadth_first {
    static constexpr std::string_view name = "breadth_first";

    constexpr std::string_view refusal(copipe::shape size) const {
        return size.micro_batches >= size.ranks ? "" : "Breadth-first needs at least as many micro-batches as ranks.";
    }
    constexpr copipe::placement placed(copipe::shape size) const { return copipe::placement::loop(size.ranks, 2); }
    constexpr copipe::program program(copipe::shape size, int rank) const {
        copipe::program order;
        for (int const stage : {rank, rank + size.ranks})
            for (int m = 0; m < size.micro_batches; ++m) order.emplace_back(copipe::op::forward, stage, m);
        for (int const stage : {rank + size.ranks, rank})
            for (int m = 0; m < size.micro_batches; ++m) order.emplace_back(copipe::op::backward, stage, m);
        return order;
    }
};
constexpr copipe::shape size{.ranks = 2, .micro_batches = 4};
static_assert(copipe::verify(breadth_first{}, size)); // nothing is missing, nothing deadlocks
static_assert(copipe::verify(breadth_first{}, size).peak == std::vector{8, 8});

using context = copipe::context<copipe::host_device>;

struct bias { // y = x + b; the last one's output is the loss
    copipe::parameter b{.name = "b", .sizes = {1}, .first = copipe::normal(1.0)};
    struct saved {};
    auto parameters() { return std::array{&b}; }
    auto forward(context& c, copipe::tensor x, saved&) -> copipe::tensor {
        c.stream.launch([x = x.data(), b = b.value.data()] { *x += *b; });
        return x;
    }
    auto backward_input(context& c, copipe::tensor dy, saved&) -> copipe::tensor { return dy ? dy : c.make({1}); }
    void backward_weight(context& c, saved&) {
        c.stream.launch([g = b.gradient.data(), share = c.scale] { *g += share; });
    }
};

struct one_number {
    static auto size() -> std::uint64_t { return 100; }
    static void load(std::uint64_t, copipe::host_array& input, copipe::host_array& target) {
        for (auto* const array : {&input, &target}) *array->resize<float>({1}, copipe::dtype::f32) = 1;
    }
};

auto main() -> int {
    auto const all = copipe::programs(breadth_first{}, size);
    auto const where = breadth_first{}.placed(size);
    std::fputs(to_text(timeline(all, where, size.micro_batches, copipe::uniform_costs{})).c_str(), stdout);
    auto layers = copipe::model<copipe::host_device>{}.add(bias{}).add(bias{}).add(bias{}).add(bias{});
    copipe::trainer<breadth_first> trainer{layers, {.ranks = size.ranks, .micro_batches = size.micro_batches}};
    for (int step = 0; step < 3; ++step) std::printf("step %d, loss %.3f\n", step, trainer.step(one_number{}).loss);
}
