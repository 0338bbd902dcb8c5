// SPDX-License-Identifier: Apache-2.0
// The program of docs/guide.md: plan, train, measure, save, and go on with another number of ranks.
#include "letters.hpp"

#include "copipe/observe/chrome_trace.hpp"
#include "copipe/observe/json_log.hpp"
#include "copipe/observe/progress.hpp"
#include "copipe/observe/run_summary.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/interrupt.hpp"
#include "copipe/train/learning_rate.hpp"
#include "copipe/train/profile.hpp"
#include "copipe/train/trainer.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace {

using copipe::host_device;

void plan(copipe::model<host_device> const& layers, letters::phrases const& data) {
    copipe::dualpipe_v const policy;
    copipe::shape const size{.ranks = 2, .micro_batches = 8};
    copipe::placement const where = policy.placed(size);
    auto const programs = copipe::verified_programs(policy, size);
    auto const cut = copipe::partition::even(static_cast<int>(layers.size()), where.model_stages());

    auto const profile = copipe::profile_layers(layers, data); // runs each layer a few times
    copipe::stage_costs const costs{profile, cut, where};
    copipe::forecast const expected = copipe::evaluate(programs, where, size.micro_batches, costs);
    for (int rank = 0; rank < size.ranks; ++rank) {
        auto const r = static_cast<std::size_t>(rank);
        std::size_t const bytes =
            copipe::predicted_memory(profile, cut, where, programs[r], rank, copipe::adamw::state_names.size());
        std::printf("rank %d: bubble %s of %.3f ms, %s\n", rank,
                    copipe::percent(expected.bubble[r] / expected.makespan).c_str(), 1e3 * expected.makespan,
                    copipe::byte_count(bytes).c_str());
    }
}

auto options(int ranks) -> copipe::trainer_options<host_device> {
    copipe::trainer_options<host_device> chosen;
    chosen.ranks = ranks;
    chosen.micro_batches = 8;
    chosen.learning_rate = copipe::cosine_rate{.peak = 1e-2, .steps = 200, .warm_up = 20, .floor = 1e-3};
    chosen.clip_norm = 1;
    chosen.seed = 1;
    return chosen;
}

void train(copipe::model<host_device> const& layers, letters::phrases const& data, letters::phrases const& held_out) {
    using trainer_type = copipe::trainer<copipe::dualpipe_v, host_device, copipe::static_partition, copipe::adamw>;
    trainer_type trainer{layers, options(2), {}, {}, copipe::adamw{.weight_decay = 0.1}};

    copipe::progress line;
    copipe::json_log log{"letters.jsonl", copipe::log_start::empty};
    copipe::run_summary summary;
    std::vector<copipe::span> measured;
    copipe::interrupt const asked; // Ctrl-C: finish the step, save, return

    copipe::fit_options fit;
    fit.checkpoint = "letters.safetensors";
    fit.checkpoint_every = 100;
    fit.stop = asked.token();
    fit.on_step = [&](copipe::step_report const& report) {
        double const letters_per_second = 8 * 16 / report.seconds;
        summary.add(report.measured);
        log.write({.step = static_cast<std::int64_t>(report.step) + 1,
                   .loss = report.loss,
                   .step_seconds = report.seconds,
                   .tokens_per_second = letters_per_second,
                   .gradient_norm = report.gradient_norm,
                   .pipeline_bubble_ratio = report.measured.bubble_ratios()});
        line.show({.step = report.step + 1,
                   .steps = 120,
                   .loss = report.loss,
                   .step_seconds = report.seconds,
                   .tokens_per_second = letters_per_second,
                   .bubble_ratio = report.measured.mean_bubble_ratio()});
        if (report.step >= 10 && report.step < 13) trainer.spans().append_to(measured); // three steps are enough to see
    };
    copipe::require_writable(fit.checkpoint); // now, not after hours
    trainer.fit(data, copipe::steps{120}, fit);
    line.finish();

    std::printf("loss on other places of the text: %.3f\n", trainer.evaluate(held_out, 4));
    std::array const peaks{trainer.peak_memory(0), trainer.peak_memory(1)};
    std::printf("%s", summary.table(peaks).c_str());
    copipe::write_chrome_trace("letters.trace.json", measured);
}

/// The same run goes on, on one rank and without a pipeline.
auto resume(copipe::model<host_device> const& layers, letters::phrases const& data, letters::phrases const& held_out)
    -> bool {
    copipe::trainer<copipe::dualpipe_v> pipelined{layers, options(2), {}, {}, copipe::adamw{.weight_decay = 0.1}};
    copipe::trainer<copipe::sequential> alone{layers, options(1), {}, {}, copipe::adamw{.weight_decay = 0.1}};
    pipelined.load("letters.safetensors");
    alone.load("letters.safetensors"); // parameters, optimizer state, step and place in the data
    bool same = true;
    for (int step = 0; step < 3; ++step) same = same && pipelined.step(data).loss == alone.step(data).loss;
    return same && pipelined.evaluate(held_out) == alone.evaluate(held_out) && alone.steps_done() == 123;
}

} // namespace

auto main() -> int {
    try {
        auto const layers = letters::make_model();
        letters::phrases const data{letters::text, 1};
        letters::phrases const held_out{letters::text, 2};
        plan(layers, data);
        train(layers, data, held_out);
        if (!resume(layers, data, held_out)) {
            std::fprintf(stderr, "two ranks and one differ\n");
            return 1;
        }
    } catch (copipe::error const& failure) { // one sentence: what is at fault, and what to do
        std::fprintf(stderr, "%s\n", failure.what());
        return 1;
    }
}
