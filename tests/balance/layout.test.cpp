// SPDX-License-Identifier: Apache-2.0
#include "copipe/balance/layout.hpp"

#include "catch.hpp"

#include <random>

using namespace copipe;

TEST_CASE("the layout of DeepSeek-V3 is read, written and explained") {
    std::string const text = "Et*3|(tt|)*29,m|L";
    auto const layout = read_layout(text);
    REQUIRE(layout.stages.count() == 32);
    CHECK(layout.stages[0] == "Ettt");
    CHECK(layout.stages[1] == "tt");
    CHECK(layout.stages[29] == "tt");
    CHECK(layout.stages[30] == "m");
    CHECK(layout.stages[31] == "L");
    auto const bounds = layout.bounds();
    CHECK(bounds[0] == 0);
    CHECK(bounds[1] == 4);
    CHECK(bounds[30] == 62);
    CHECK(bounds[32] == 64);
    CHECK(write_layout(layout) == text);
    CHECK(explain_layout(layout) == "stage 0: embedding, 3 x transformer (layers 0-3)\n"
                                    "stages 1-29: each 2 x transformer (layers 4-61)\n"
                                    "stage 30: multi-token prediction (layer 62)\n"
                                    "stage 31: loss (layer 63)\n");
}

TEST_CASE("groups, counts and commas read as Megatron-LM reads them") {
    auto const stages = [](std::string_view text) { return read_layout(text).stages; };
    CHECK(stages("E,(t|)*2,tL") == row<std::string>{"Et", "t", "tL"});
    CHECK(stages("E(t|tt)*2,L") == row<std::string>{"Et", "ttt", "ttL"});
    CHECK(stages("E(|tt)*2|L") == row<std::string>{"E", "tt", "tt", "L"});
    CHECK(stages("E(t*2|)*2mmL") == row<std::string>{"Ett", "tt", "mmL"});
    CHECK(stages("Et|(tt|)*2L") == row<std::string>{"Et", "tt", "tt", "L"});
    CHECK(stages("EL") == row<std::string>{"EL"});
}

TEST_CASE("stages may be empty") {
    auto const layout = read_layout("E||t|L");
    CHECK(layout.stages == row<std::string>{"E", "", "t", "L"});
    CHECK(layout.bounds() == row<int>{0, 1, 1, 2, 3});
    CHECK(read_layout("E|*3tL").stages == row<std::string>{"E", "", "", "tL"});
    CHECK(explain_layout(layout) == "stage 0: embedding (layer 0)\n"
                                    "stage 1: empty\n"
                                    "stage 2: transformer (layer 1)\n"
                                    "stage 3: loss (layer 2)\n");
}

TEST_CASE("a layout that cannot be read says where and why") {
    auto const why = [](std::string_view text) -> std::string {
        try {
            return write_layout(read_layout(text));
        } catch (layout_error const& refused) {
            auto const column = std::to_string(refused.column);
            auto const head = "Layout `" + std::string(text) + "`, column " + column + ": ";
            std::string const sentence = refused.what();
            REQUIRE(sentence.starts_with(head));
            return column + " " + sentence.substr(head.size());
        }
    };
    CHECK(why("Et|tL") == "Et|tL");
    CHECK(why("Et|xL") == "4 only E, t, m, L, `|`, `*N`, `(...)*N` and commas may stand here.");
    CHECK(why("E*|L") == "2 `*` needs a number of at least 1 after it.");
    CHECK(why("Et*0L") == "3 `*` needs a number of at least 1 after it.");
    CHECK(why("Et*99999999999999999999L") == "3 there are more than 100000 layers and stages.");
    CHECK(why("E(tt|L") == "2 the group is not closed.");
    CHECK(why("E(tt|)L") == "6 a group needs `*N` after it.");
    CHECK(why("E(t(t)*2)*2L") == "4 groups do not nest.");
    CHECK(why("Et)*2L") == "3 there is no group to close.");
    CHECK(why("tt|L") == "1 the embedding E must come first, and only once.");
    CHECK(why("Et|EtL") == "4 the embedding E must come first, and only once.");
    CHECK(why("E*2L") == "1 the embedding E must come first, and only once.");
    CHECK(why("Et|LtL") == "5 nothing may follow the loss L.");
    CHECK(why("Em|tL") == "4 transformer layers t must come before multi-token prediction m.");
    CHECK(why("Et|t") == "5 the loss L must come last.");
    CHECK(why("") == "1 the loss L must come last.");
    CHECK(why("*3EL") == "1 only E, t, m, L, `|`, `*N`, `(...)*N` and commas may stand here.");
}

TEST_CASE("every layout that is written reads back the same") {
    std::mt19937 random(9);
    for (int round = 0; round < 500; ++round) {
        stage_layout layout{{"E"}};
        for (auto left = random() % 30; left > 0; --left) {
            if (random() % 3 == 0) layout.stages.emplace_back();
            if (random() % 4 == 0) layout.stages.insert(layout.stages.end(), random() % 5, layout.stages.back());
            layout.stages.back() += std::string(random() % 4, 't');
        }
        for (int s = 1; s < layout.stages.count(); ++s) std::erase(layout.stages[s], 'E');
        layout.stages.back() += "mL";
        CAPTURE(write_layout(layout));
        CHECK(read_layout(write_layout(layout)) == layout);
    }
}
