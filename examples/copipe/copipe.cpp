// SPDX-License-Identifier: Apache-2.0
// Proves, predicts, draws and compares pipeline schedules, cuts models into stages and places experts. `copipe --help`
// lists what it can be asked for.
#include "commands.hpp"

#include <exception>
#include <iostream>
#include <new>
#include <string>

namespace {

/// A message as one line: whatever a name or an argument holds must not end it or speak to the terminal.
std::string one_line(std::string text) {
    for (char& each : text)
        if (static_cast<unsigned char>(each) < ' ' || each == 127) each = '?';
    return text;
}

} // namespace

int main(int count, char** arguments) {
    try {
        auto const asked = read_options(count, arguments);
        int code = 0;
        if (asked && !asked->command.empty()) {
            auto const run = asked->command == "schedule"   ? print_schedule
                             : asked->command == "check"    ? check_file
                             : asked->command == "simulate" ? simulate_step
                                                            : compare_policies;
            code = run(*asked);
        }
        if (!std::cout.flush()) throw usage_error("cannot write to standard output");
        return code;
    } catch (std::bad_alloc const&) {
        std::cerr << "copipe: this step does not fit into memory\n";
    } catch (std::exception const& wrong) {
        std::cerr << "copipe: " << one_line(wrong.what()) << '\n';
    }
    return 2;
}
