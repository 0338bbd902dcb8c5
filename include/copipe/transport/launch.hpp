// SPDX-License-Identifier: Apache-2.0
// Which rank of how many this process is, and where rank 0 waits for the others: from explicit options or from the
// variables of torchrun, Open MPI, MPICH or Slurm. MPI itself is never needed.
#pragma once

#include "copipe/error.hpp"

#include <array>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace copipe {

/// A launcher's variables or the user's options contradict each other or say too little; the sentence names the
/// variable.
class launch_error : public error {
public:
    using error::error;
};

/// A process's place among those of its job.
struct launch {
    int rank = 0;
    int size = 1;
    int local_rank = 0; ///< among the processes of this machine: which GPU to take
    int local_size = 1; ///< 0 if the launcher does not say
    std::string address = "127.0.0.1"; ///< where rank 0 can be reached
    std::uint16_t port = 29500;
    std::string job{};                  ///< the same in all processes of a job, other in other jobs; may be empty
    std::string source = "one process"; ///< who said so

    /// `rank 3 of 4 (on this machine 1 of 2), told by torchrun; rank 0 is at node7:29500`, for the program to print.
    template <class = void> [[nodiscard]] auto description() const -> std::string {
        if (size == 1) return "one process (" + source + ")";
        return "rank " + std::to_string(rank) + " of " + std::to_string(size) + " (on this machine " +
               std::to_string(local_rank) + (local_size > 0 ? " of " + std::to_string(local_size) : "") +
               "), told by " + source + "; rank 0 is at " + address + ":" + std::to_string(port);
    }
};

/// What a user says explicitly; it goes before any variable. `rank` and `size` come together.
struct launch_options {
    std::optional<int> rank{}, size{}, local_rank{}, local_size{}, port{};
    std::optional<std::string> address{}, job{};
};

/// Looks a variable up; nothing if it is not set.
using variables = std::function<std::optional<std::string>(std::string const& name)>;

template <class = void> [[nodiscard]] auto process_variables() -> variables {
    return [](std::string const& name) -> std::optional<std::string> {
        char const* const value = std::getenv(name.c_str());
        return value && *value ? std::optional<std::string>{value} : std::nullopt;
    };
}

/// The first host of a list in Slurm's notation: `rack[3-5,9]-gpu[01-16],login` begins with `rack3-gpu01`. Throws
/// launch_error.
template <class = void>
[[nodiscard]] auto first_host(std::string_view list, std::string_view variable = "SLURM_JOB_NODELIST")
    -> std::string {
    std::string host;
    for (std::size_t i = 0; i < list.size() && list[i] != ','; ++i) {
        if (list[i] != '[') {
            host += list[i];
            continue;
        }
        std::size_t const closing = list.find(']', i);
        std::string_view const range = closing == list.npos ? "" : list.substr(i + 1, closing - i - 1);
        std::string_view const first = range.substr(0, range.find_first_of(",-"));
        if (first.empty() || first.find_first_not_of("0123456789") != first.npos) {
            host.clear();
            break;
        }
        host += first;
        i = closing;
    }
    if (host.empty() || host.find(']') != host.npos)
        throw launch_error(std::string(variable) + " is \"" + std::string(list) +
                           "\", which is no list of hosts as Slurm writes it");
    return host;
}

/// Reads the place of this process from options, else from the variables of the innermost launcher, else: one process.
template <class = void> class launch_resolver {
public:
    launch_resolver(launch_options given, variables look_up) : given_(std::move(given)), look_up_(std::move(look_up)) {}

    /// Throws launch_error.
    [[nodiscard]] auto resolve() const -> launch {
        launch found;
        if (given_.rank || given_.size) {
            if (!given_.rank || !given_.size)
                throw launch_error(std::string("the rank and the number of processes are given together: ") +
                                   (given_.rank ? "the number of processes" : "the rank") + " is missing");
            found = {.rank = *given_.rank, .size = *given_.size, .source = "explicit options"};
            local(found, {});
            check(found, {"", "the rank", "the number of processes", "", "the local rank", "the local number"});
        } else {
            for (launcher const& each : launchers)
                if (each.present(look_up_)) return told_by(each);
            if (given_.local_rank || given_.local_size)
                throw launch_error("a local rank is given, but neither the rank nor the number of processes");
        }
        meeting_point(found);
        return found;
    }

private:
    /// A launcher and its variables.
    struct launcher {
        std::string name{}, rank{}, size{}, other_size{}, local_rank{}, local_size{};

        [[nodiscard]] auto present(variables const& look_up) const -> bool {
            return look_up(rank) || (name == "torchrun" && look_up(size)); // others set their size outside, too
        }
    };
    /// The innermost first: under Slurm, mpirun's daemons pass their own SLURM_PROCID on to the processes they start.
    inline static std::array<launcher, 4> const launchers{
        {{"torchrun", "RANK", "WORLD_SIZE", "", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
         {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "", "OMPI_COMM_WORLD_LOCAL_RANK",
          "OMPI_COMM_WORLD_LOCAL_SIZE"},
         {"MPICH", "PMI_RANK", "PMI_SIZE", "", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
         {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"}}};

    [[nodiscard]] auto told_by(launcher by) const -> launch {
        if (number(by.other_size)) by.size = by.other_size;
        launch found{.rank = required(by.rank, by.size), .size = required(by.size, by.rank), .source = by.name};
        local(found, by);
        check(found, by);
        meeting_point(found);
        return found;
    }

    /// Without a word of it all processes are taken to be on one machine.
    void local(launch& found, launcher const& by) const {
        std::optional<int> const rank = given_.local_rank ? given_.local_rank : number(by.local_rank);
        std::optional<int> const size = given_.local_size ? given_.local_size : number(by.local_size);
        found.local_rank = rank.value_or(found.rank);
        found.local_size = size.value_or(rank ? 0 : found.size);
    }

    static void check(launch const& found, launcher const& by) {
        auto const within = [](std::string const& name, int value, std::string const& of, int limit) {
            if (value >= 0 && value < limit) return;
            throw launch_error(name + " is " + std::to_string(value) + " and " + of + " is " + std::to_string(limit) +
                               ": ranks count from 0 to one less than their number");
        };
        within(by.rank, found.rank, by.size, found.size);
        if (found.local_size == 0) within(by.local_rank, found.local_rank, by.size, found.size);
        else within(by.local_rank, found.local_rank, by.local_size, found.local_size);
        if (found.local_size > found.size)
            throw launch_error(by.local_size + " is " + std::to_string(found.local_size) + ", more than " + by.size +
                               ", which is " + std::to_string(found.size));
    }

    void meeting_point(launch& found) const {
        for (auto const* name : {"TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"})
            if (found.job.empty()) found.job = look_up_(name).value_or("");
        if (given_.job) found.job = *given_.job;
        found.port = static_cast<std::uint16_t>(port());
        if (given_.address) {
            found.address = *given_.address;
        } else if (auto const address = look_up_("MASTER_ADDR")) {
            found.address = *address;
        } else if (auto const step = look_up_("SLURM_STEP_NODELIST")) {
            found.address = first_host(*step, "SLURM_STEP_NODELIST");
        } else if (auto const nodes = look_up_("SLURM_JOB_NODELIST")) {
            found.address = first_host(*nodes);
        } else if (found.local_size < found.size) {
            throw launch_error("MASTER_ADDR is not set, but some of the " + std::to_string(found.size) +
                               " processes are on other machines: set it to the host of rank 0");
        }
    }

    [[nodiscard]] auto port() const -> int {
        if (given_.port) return in_range("the port", *given_.port);
        if (auto const told = number("MASTER_PORT")) {
            // torchrun's own store listens at that port, so rank 0 takes the next one.
            bool const taken = look_up_("TORCHELASTIC_USE_AGENT_STORE") == std::optional<std::string>{"True"};
            return in_range("MASTER_PORT", *told + (taken ? 1 : 0));
        }
        if (auto const job = number("SLURM_JOB_ID"))
            return 20000 + (*job % 10000 + 31 * (number("SLURM_STEP_ID").value_or(0) % 300)) % 10000;
        return launch{}.port;
    }
    [[nodiscard]] static auto in_range(std::string const& name, int port) -> int {
        if (port < 1 || port > 65535)
            throw launch_error(name + " is " + std::to_string(port) + "; a TCP port is a number from 1 to 65535");
        return port;
    }

    [[nodiscard]] auto required(std::string const& name, std::string const& set) const -> int {
        if (auto const told = number(name)) return *told;
        throw launch_error(set + " is set, but " + name + " is not: start all processes with both, or with neither");
    }
    [[nodiscard]] auto number(std::string const& name) const -> std::optional<int> {
        auto const text = name.empty() ? std::nullopt : look_up_(name);
        if (!text) return std::nullopt;
        int value = 0;
        auto const [end, wrong] = std::from_chars(text->data(), text->data() + text->size(), value);
        if (wrong == std::errc{} && end == text->data() + text->size()) return value;
        throw launch_error(name + " is \"" + *text + "\", which is no whole number");
    }

    launch_options given_;
    variables look_up_;
};

/// The place of this process in its job. Throws launch_error.
template <class = void>
[[nodiscard]] auto resolve_launch(launch_options given = {}, variables look_up = process_variables()) -> launch {
    return launch_resolver{std::move(given), std::move(look_up)}.resolve();
}

} // namespace copipe
