// SPDX-License-Identifier: Apache-2.0
// One trainer in several processes: what it learns, saves and says must be what it is in one.
#include "catch.hpp"
#include "pipeline/toy.hpp"
#include "says.hpp"
#include "temporary_folder.hpp"
#include "train/compiled.hpp"
#include "transport/processes.hpp"

#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/trainer.hpp"
#include "copipe/transport/tcp.hpp"

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;

namespace {

/// TCP that loses no time in tests.
template <class Device>
class quick_tcp : public tcp<Device> {
public:
    explicit quick_tcp(launch const& own)
        : tcp<Device>(own, {.meeting = {.deadline = 20s, .retry = 5ms}, .silence = 10s}) {}
};

using alone = trainer<dualpipe, host_device>;
using joined = trainer<dualpipe, host_device, static_partition, adamw, quick_tcp>;

auto options(launch const& process = {}) -> trainer_options<> {
    return {.ranks = 4,
            .micro_batches = 12,
            .learning_rate = constant_rate{0.02},
            .clip_norm = 0.5,
            .seed = 5,
            .process = process};
}
auto place(int rank, std::uint16_t port) -> launch {
    return {.rank = rank, .size = 4, .local_rank = rank, .local_size = 4, .port = port};
}

/// All that a run of six steps comes to, with a checkpoint saved and loaded and layers moved on the way; exact.
template <class Trainer>
auto story(Trainer& trainer, std::string const& file) -> std::string {
    toy::numbers const data{[](std::uint64_t index) { return static_cast<std::int64_t>(1 + index % 4); }};
    std::string told;
    auto const tell = [&](double value) {
        char text[40];
        std::snprintf(text, sizeof text, "%a ", value);
        told += text;
    };
    auto const steps = [&](int count) {
        for (int i = 0; i < count; ++i) {
            step_report const report = trainer.step(data);
            tell(report.loss);
            tell(report.gradient_norm);
        }
    };
    steps(2);
    trainer.save(file);
    tell(trainer.evaluate(data, 2, 30));
    trainer.repartition(partition::given({0, 1, 5, 8, 9}, 9));
    steps(2);
    trainer.load(file);
    steps(2);
    for (auto const& group : trainer.parameters())
        for (float const value : trainer.values(group.name)) tell(static_cast<double>(value));
    return told;
}

} // namespace

TEST_CASE("a pipeline of processes learns, evaluates, moves, saves and loads bit for bit what one of threads does") {
    temporary_folder const folder;
    auto const port = free_port();
    std::string const file = folder / "model.safetensors";
    forked const job(4, [&](int rank) {
        joined own{toy::network(8, true), options(place(rank, port))};
        return story(own, file);
    });
    std::vector<std::string> told;
    for (int rank = 0; rank < 4; ++rank) told.push_back(job.said(rank));
    alone all{toy::network(8, true), options()};
    std::string const expected = story(all, folder / "other.safetensors");
    for (std::string const& each : told) CHECK(each == expected);
}

TEST_CASE("a step that fails in one process fails in all, and all go on from where they were") {
    auto const port = free_port();
    forked const job(4, [&](int rank) -> std::string {
        struct poisoned : toy::numbers {
            bool bad = true;
            void load(std::uint64_t index, host_array& input, host_array& target) const {
                numbers::load(index, input, target);
                if (bad && index == 2) *target.data<float>() = std::numeric_limits<float>::infinity();
            }
        } data;
        joined own{toy::network(8, false), options(place(rank, port))};
        std::string told;
        for (int attempt = 0; attempt < 3; ++attempt) {
            try {
                static_cast<void>(own.step(data));
            } catch (not_finite const&) {
                told += "not finite;";
            } catch (peer_failed const&) {
                told += "not finite;"; // another process was the first to see it
            }
        }
        data.bad = false;
        step_report const report = own.step(data);
        return told + std::to_string(report.step) + " " + std::to_string(report.loss);
    });
    std::string const first = job.said(0);
    CHECK_THAT(first, says("not finite;not finite;not finite;0 "));
    for (int rank = 1; rank < 4; ++rank) CHECK(job.said(rank) == first);
}

TEST_CASE("a process that is killed ends the training of all others, and they name its rank") {
    auto const port = free_port();
    forked const job(4, [&](int rank) -> std::string {
        joined own{toy::network(8, false), options(place(rank, port))};
        toy::numbers const data;
        for (int i = 0;; ++i) {
            if (rank == 2 && i == 3) std::raise(SIGKILL);
            static_cast<void>(own.step(data));
        }
    });
    for (int rank : {0, 1, 3}) CHECK_THAT(job.said(rank), says("rank 2 is gone"));
}

TEST_CASE("a job whose processes do not fit the pipeline is refused before anything runs") {
    launch const one_of_two{.rank = 0, .size = 2};
    CHECK_THROWS_WITH((alone{toy::network(8, false), options(one_of_two)}),
                      says("one of 2 processes") && says("connects threads: take tcp"));
    CHECK_THROWS_WITH((joined{toy::network(8, false), options(one_of_two)}),
                      says("the pipeline has 4 ranks, the job 2 processes"));
}
