// SPDX-License-Identifier: Apache-2.0
// Trains a byte-level GPT through a pipeline of ranks. `train_gpt --help` lists what it can be asked for.
#include "copipe/train/interrupt.hpp"
#include "copipe/train/learning_rate.hpp"
#include "gpt/compare.hpp"
#include "gpt/gpus.hpp"
#include "gpt/journal.hpp"
#include "gpt/options.hpp"
#include "gpt/processes.hpp"
#include "gpt/sampler.hpp"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using copipe::host_device;
using path = std::filesystem::path;

/// The project's own text, where it still lies beside the sources of this program; else the current folder.
auto default_data() -> std::vector<path> {
    std::vector<path> found;
    for (auto const* part : {"include", "examples", "docs", "README.md"}) {
        path const each = path{TRAIN_GPT_SOURCE_DIR} / part;
        if (exists(each)) found.push_back(each);
    }
    return found.empty() ? std::vector<path>{"."} : found;
}

auto trainer_options(gpt::options const& asked) -> copipe::trainer_options<host_device> {
    return {.ranks = asked.pipeline.ranks,
            .micro_batches = asked.pipeline.micro_batches,
            .learning_rate = copipe::cosine_rate{.peak = asked.learning_rate,
                                                 .steps = asked.steps,
                                                 .warm_up = std::min<std::uint64_t>(asked.steps / 10, 100),
                                                 .floor = asked.learning_rate / 10},
            .seed = asked.seed};
}

/// What is trained, and on what.
struct job {
    gpt::options asked;
    gpt::place where;
    std::vector<path> data;
    gpt::corpus text;
    copipe::model<host_device> model;
    gpt::micro_batches training, validation;

    /// Throws corpus_error and config_error.
    explicit job(gpt::options const& of)
        : asked(of),
          where(gpt::choose_place(of)),
          data(of.data.empty() ? default_data() : of.data),
          text(data, {.context = of.model.context, .seed = of.seed}),
          model(gpt::make_model(of.model)),
          training{text.training(), of.micro_batch_size},
          validation{text.validation(), of.micro_batch_size} {}

    [[nodiscard]] auto layers() const -> int { return static_cast<int>(model.size()); }

    void announce() const {
        gpt::config const& size = asked.model;
        std::cout << "model   " << size.blocks << " blocks, width " << size.width << ", " << size.heads
                  << " heads, context " << size.context << "\ndata   ";
        for (path const& each : data) std::cout << ' ' << each.lexically_normal().string();
        std::cout << ": " << copipe::grouped(static_cast<double>(text.bytes().size())) << " bytes\nstep    "
                  << asked.pipeline.micro_batches << " micro-batches of " << asked.micro_batch_size << " x "
                  << size.context << " bytes, " << copipe::grouped(gpt::tokens_per_step(asked)) << " together"
                  << "\ndevice  " << where.sentence << std::endl;
    }
    [[nodiscard]] auto measured() const -> std::vector<copipe::layer_profile> {
        if (asked.process.rank > 0 && asked.memory_limit == 0) // rank 0 measures, undisturbed, and decides
            return std::vector<copipe::layer_profile>(model.size(), {.forward = 1, .backward_input = 1});
        return where.gpus > 0 ? gpt::measured_on_gpu(asked, training) : gpt::measured(model, training);
    }
};

void compare(job const& of) {
    std::uint64_t const steps = of.asked.steps;
    of.announce();
    std::cout << "steps   " << steps << " under each policy, which take turns\n" << std::endl;
    std::string const table = gpt::compare(of.asked.pipeline, of.model, gpt::measured(of.model, of.training),
                                           trainer_options(of.asked), of.training, steps, [&](std::uint64_t done) {
                                               std::cerr << "step " << done << '/' << steps << " under each policy\n";
                                           });
    std::cout << table << std::flush;
}

/// A run in the order in which bad input shows before anything is written or trained.
class run {
public:
    explicit run(job const& of) : of_(of), asked_(of.asked), plan_(planned(of)) {
        for (std::string const& file : {asked_.checkpoint, asked_.timeline})
            if (!file.empty() && asked_.process.rank == 0) copipe::require_writable(file);
        copipe::trainer_options<host_device> options = trainer_options(asked_);
        options.process = asked_.process;
        options.lookahead = of.where.lookahead();
        options.layers = plan_.cut;
        if (asked_.process.size > 1)
            options.layers = gpt::agreed_cut(asked_.process, plan_.cut, of.where.gpus > 0,
                                             std::chrono::seconds{asked_.meet_within});
        if (asked_.memory_limit != 0) options.memory = {.bytes = {asked_.memory_limit}, .layers = plan_.layers};
        if (asked_.balanced && asked_.fingerprints != "none")
            options.fingerprints = asked_.fingerprints == "cache" ? copipe::fingerprint_cache() : asked_.fingerprints;
        fingerprints_ = options.fingerprints;
        options.make_device = [this](int rank) {
            auto made = std::make_unique<host_device>();
            devices_.at(static_cast<std::size_t>(rank)) = made.get();
            return made;
        };
        gpt::chosen_balancer decides;
        if (asked_.balanced) decides.moving.emplace(copipe::balanced_options{.check_every = asked_.balance_every});
        trainer_ = of.where.gpus > 0
                       ? gpt::make_gpu_trainer(asked_, of.where.gpus, std::move(options), std::move(decides))
                   : asked_.process.size > 1
                       ? gpt::make_process_trainer(asked_.policy, of.model, std::move(options))
                       : gpt::make_trainer(asked_.policy, of.model, std::move(options), std::move(decides));
        if (!asked_.resume.empty()) trainer_->load(asked_.resume);
        journal_.emplace(asked_);
    }

    void announce() const {
        of_.announce();
        std::cout << "plan    " << asked_.policy << ": " << gpt::milliseconds(plan_.step_seconds())
                  << " a step before the update, bubble " << copipe::percent(plan_.mean_bubble_ratio()) << "\n\n"
                  << gpt::describe(plan_) << std::endl;
        for (std::size_t rank = 0; rank < trainer_->fingerprints().size(); ++rank)
            std::cout << "device of rank " << rank << ": "
                      << gpt::describe(trainer_->fingerprints()[rank], fingerprints_) << std::endl;
        std::uint64_t const done = trainer_->steps_done();
        if (done > 0) std::cout << "resumed after step " << done << " from " << asked_.resume << std::endl;
        if (done >= asked_.steps)
            std::cout << "no step is left to train: --steps counts those before, too" << std::endl;
    }

    /// Returns the signal that ended training early, or 0.
    auto train() -> int {
        copipe::interrupt const asked_to_stop;
        std::uint64_t const before = trainer_->steps_done();
        for (gpt::slow_rank const& each : asked_.slow)
            if (each.step <= before + 1) slow_down(each);
        trainer_->fit(of_.training, copipe::steps{asked_.steps - std::min(before, asked_.steps)},
                      {.on_step = [this](copipe::step_report const& report) { note(report); },
                       .checkpoint = asked_.checkpoint,
                       .checkpoint_every = asked_.checkpoint_every,
                       .stop = asked_to_stop.token()});
        journal_->finish();
        if (!asked_.timeline.empty()) journal_->write_timeline(plan_);
        return trainer_->steps_done() < asked_.steps ? asked_to_stop.signal() : 0;
    }

    void report(int signal) {
        std::vector<std::size_t> peaks;
        for (int rank = 0; rank < asked_.pipeline.ranks; ++rank) peaks.push_back(trainer_->peak_memory(rank));
        std::cout << '\n' << journal_->summary(peaks);
        if (journal_->moves() > 0)
            std::cout << "\nlayers of each rank at the end\n" << gpt::describe_layers(plan_, trainer_->layers());
        if (!asked_.timeline.empty()) std::cout << "timeline " << asked_.timeline << ", for https://ui.perfetto.dev\n";
        if (!asked_.checkpoint.empty()) std::cout << "checkpoint " << asked_.checkpoint << '\n';
        if (signal != 0) {
            std::cout << "stopped by " << (signal == SIGINT ? "Ctrl-C" : "SIGTERM") << " after step "
                      << trainer_->steps_done() << " of " << asked_.steps
                      << (asked_.checkpoint.empty() ? "; nothing saved, as no --checkpoint was named"
                                                    : "; go on with --resume " + asked_.checkpoint)
                      << '\n';
        } else if (asked_.sample > 0 && trainer_->steps_done() >= asked_.steps) {
            gpt::sampler writer{asked_.model, *trainer_};
            std::cout << "\na sample\n--------\n"
                      << gpt::printable(writer.text(static_cast<std::size_t>(asked_.sample), asked_.seed)) << '\n';
        }
        std::cout << std::flush;
    }

private:
    [[nodiscard]] static auto planned(job const& of) -> gpt::run_plan {
        auto order = gpt::schedule_of(of.asked.policy, of.asked.pipeline, of.layers());
        auto given = gpt::partition_from(of.asked.layout, order, of.layers());
        return gpt::run_plan{{std::move(order), of.measured(), of.asked.memory_limit, of.where.lookahead()},
                             std::move(given)};
    }

    void slow_down(gpt::slow_rank const& which) {
        devices_[static_cast<std::size_t>(which.rank)]->slow_down(which.factor);
        journal_->print("from step " + std::to_string(which.step) + " on rank " + std::to_string(which.rank) +
                        " computes " + copipe::decimal(which.factor, 2) + " times slower");
    }

    void note(copipe::step_report const& report) {
        journal_->note(report, trainer_->spans());
        journal_->note(trainer_->balancer());
        std::uint64_t const number = report.step + 1;
        for (gpt::slow_rank const& each : asked_.slow)
            if (each.step == number + 1) slow_down(each);
        bool const due = asked_.eval_every != 0 && number % asked_.eval_every == 0;
        if (!due) return;
        double const loss = trainer_->evaluate(of_.validation, 1);
        journal_->print("step " + std::to_string(number) + ": loss on held-out text " + copipe::decimal(loss, 4));
    }

    job const& of_;
    gpt::options const& asked_;
    gpt::run_plan plan_;
    std::string fingerprints_{}; ///< file
    std::vector<host_device*> devices_ = std::vector<host_device*>(static_cast<std::size_t>(asked_.pipeline.ranks));
    std::unique_ptr<gpt::any_trainer> trainer_{};
    std::optional<gpt::journal> journal_{};
};

} // namespace

auto main(int count, char** arguments) -> int {
    bool started = false;
    try {
        gpt::one_blas_thread();
        auto asked = gpt::parse(count, arguments);
        if (!asked) return 0;
        if (asked->process.rank > 0) { // rank 0 speaks for all, and writes the files
            std::cout << asked->process.description() << std::endl;
            std::cout.setstate(std::ios::failbit);
            asked->log.clear();
            asked->timeline.clear();
        }
        job const of{*asked};
        if (asked->compare) {
            compare(of);
            return 0;
        }
        run all{of};
        all.announce();
        started = true;
        int const signal = all.train();
        all.report(signal);
        return signal == 0 ? 0 : 128 + signal;
    } catch (std::bad_alloc const&) {
        std::cerr << "train_gpt: there is not enough memory; choose a smaller model or fewer micro-batches\n";
    } catch (std::system_error const& failure) {
        bool const threads = failure.code() == std::errc::resource_unavailable_try_again;
        std::cerr << "train_gpt: " << (threads ? "the system starts no more threads; take fewer ranks" : failure.what())
                  << '\n';
    } catch (std::exception const& failure) {
        std::cerr << "train_gpt: " << failure.what() << '\n';
    }
    return started ? 1 : 2;
}
