// SPDX-License-Identifier: Apache-2.0
// The examples of docs/troubleshooting.md: where a step stands, why a loss differs, where time goes.
#include "letters.hpp"

#include "copipe/observe/chrome_trace.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/profile.hpp"
#include "copipe/train/trainer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using copipe::host_device;

void expect(bool holds, std::string const& what) {
    if (!holds) throw std::logic_error(what);
}

// It hangs: every rank says what it has finished.

struct narrator {
    std::FILE* to;
    void record(copipe::span const& one) noexcept { // called by all ranks' threads: one call of fprintf each
        std::fprintf(to, "%.6f rank %d: %s\n", one.end, one.rank, copipe::trace_name(one).c_str());
    }
};
static_assert(copipe::observer<narrator>);

void narrate(copipe::model<host_device> const& layers, letters::phrases const& data) {
    narrator voice{std::fopen("steps.txt", "w")};
    {
        copipe::trainer_options<host_device> options{.ranks = 2, .micro_batches = 4};
        options.lookahead = 1; // a chunk is reported before the next but one is launched
        options.listener = copipe::observer_ref{voice};
        copipe::trainer<copipe::one_f_one_b> trainer{layers, options};
        trainer.step(data);
    }
    std::fclose(voice.to);
}

// The loss differs: which parameter does, first?

template <class A, class B>
auto first_difference(A& one, B& other) -> std::string {
    for (copipe::parameter_group const& each : one.parameters()) // in the order of the layers
        if (one.values(each.name) != other.values(each.name)) return each.name;
    return "";
}

void compare(copipe::model<host_device> const& layers, letters::phrases const& data) {
    copipe::trainer<copipe::sequential> plain{layers, {.ranks = 1, .micro_batches = 4}};
    copipe::trainer<copipe::one_f_one_b> pipelined{layers, {.ranks = 3, .micro_batches = 4}};
    copipe::trainer_options<host_device> in_order{.ranks = 3, .micro_batches = 4};
    in_order.make_device = [](int) { return std::make_unique<host_device>(copipe::host_execution::inline_); };
    copipe::trainer<copipe::one_f_one_b> at_once{layers, in_order}; // launches run where they are enqueued

    double const loss = plain.step(data).loss;
    expect(pipelined.step(data).loss == loss && at_once.step(data).loss == loss, "the losses differ");
    std::string const name = first_difference(plain, pipelined);
    expect(name.empty() && first_difference(plain, at_once).empty(), "differs first: " + name);
}

// Is a gradient right? Finite differences of the loss of one micro-batch.

auto largest_error(copipe::model<host_device> const& layers, letters::phrases const& data) -> double {
    host_device device;
    auto& stream = device.open_stream("check");
    copipe::executor exec;
    copipe::stage<host_device> all{layers, 0, static_cast<int>(layers.size()), 1, 1, stream};
    copipe::host_array input, target;
    data.load(0, input, target);
    copipe::tensor const x{*stream.memory(), input.sizes(), input.type()};
    copipe::tensor const t{*stream.memory(), target.sizes(), target.type()};
    stream.copy(x.data(), input.data(), input.bytes());
    stream.copy(t.data(), target.data(), target.bytes());
    copipe::context<host_device> work{.stream = stream, .target = t};

    auto const loss = [&] {
        copipe::tensor const found = copipe::run(exec, all.forward(work, 0, x));
        stream.synchronize(); // a launch that failed throws here
        return static_cast<double>(*found.data());
    };
    for (auto& layer : all.layers())
        for (copipe::parameter* p : layer.parameters()) stream.zero(p->gradient.data(), p->gradient.bytes());
    loss();
    copipe::run(exec, all.backward(work, 0, {}, true));
    stream.synchronize();

    double worst = 0;
    for (auto& layer : all.layers()) {
        for (copipe::parameter* p : layer.parameters()) {
            for (std::size_t i = 0; i < p->count(); i += 1 + p->count() / 5) { // a few elements of each
                float& value = p->value.data()[i];
                float const before = value;
                double const above = (value = before + 1e-2F, loss());
                double const below = (value = before - 1e-2F, loss());
                value = before;
                double const expected = (above - below) / 2e-2;
                worst = std::max(worst, std::abs(static_cast<double>(p->gradient.data()[i]) - expected));
            }
        }
    }
    return worst;
}

// The bubble is larger than predicted: both timelines in one file.

void planned_and_measured(copipe::model<host_device> const& layers, letters::phrases const& data) {
    copipe::trainer<copipe::one_f_one_b> trainer{layers, {.ranks = 2, .micro_batches = 8}};
    for (int step = 0; step < 5; ++step)
        trainer.step(data); // the first steps are slower: memory is taken from the system
    std::vector<copipe::span> measured;
    trainer.spans().append_to(measured);

    auto const programs = copipe::verified_programs(copipe::one_f_one_b{}, {.ranks = 2, .micro_batches = 8});
    copipe::placement const where = trainer.plan().where;
    copipe::stage_costs const costs{copipe::profile_layers(layers, data), trainer.layers(), where};
    std::vector<copipe::span> planned;
    copipe::evaluate(programs, where, 8, costs, [&](copipe::span const& each) { planned.push_back(each); });

    std::vector const groups{copipe::trace_group{.name = "planned", .spans = planned},
                            copipe::trace_group{.name = "measured", .spans = measured}};
    copipe::write_chrome_trace("both.trace.json", groups); // open it at https://ui.perfetto.dev
    expect(trainer.step(data).measured.mean_bubble_ratio() > 0, "some bubble is measured");
}

// A step that failed: what happened where, and the next step runs.

struct fragile {
    bool broken = false;
    struct saved {};
    auto forward(letters::context& c, copipe::tensor x, saved&) const -> copipe::tensor {
        if (broken && c.training && c.micro_batch == 2) throw std::runtime_error("no symbol 31");
        return x;
    }
    static auto backward_input(letters::context&, copipe::tensor dy, saved&) -> copipe::tensor { return dy; }
};

void failures() {
    copipe::model<host_device> layers;
    layers.add(letters::embedding{8}).add(letters::dense{40, 8}).add(fragile{true}).add(letters::head{8});
    copipe::trainer<copipe::one_f_one_b> trainer{layers, {.ranks = 2, .micro_batches = 4}};
    letters::phrases const data{letters::text, 1};
    try {
        trainer.step(data);
        expect(false, "the step fails");
    } catch (copipe::chunk_error const& failure) {
        std::printf("%s\n", failure.what()); // rank 1, stage 1, micro-batch 2, forward of layer 2: no symbol 31
        expect(failure.rank == 1 && failure.micro_batch == 2, "it says where");
    }
    expect(trainer.steps_done() == 0 && trainer.evaluate(data) > 0, "nothing was changed, and it goes on");
}

} // namespace

auto main() -> int {
    try {
        auto const layers = letters::make_model();
        letters::phrases const data{letters::text, 1};
        narrate(layers, data);
        compare(layers, data);
        double const worst = largest_error(layers, data);
        expect(worst < 1e-3, "a gradient is wrong by " + std::to_string(worst));
        planned_and_measured(layers, data);
        failures();
    } catch (std::exception const& failure) {
        std::fprintf(stderr, "%s\n", failure.what());
        return 1;
    }
}
