// SPDX-License-Identifier: Apache-2.0
#include "gpt/corpus.hpp"

#include "catch.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

/// A folder of its own, gone when the test ends.
class folder {
public:
    folder() : root_(fs::temp_directory_path() / ("copipe-corpus-" + std::to_string(std::random_device{}()))) {
        fs::create_directories(root_);
    }
    folder(folder const&) = delete;
    auto operator=(folder const&) -> folder& = delete;
    ~folder() { fs::remove_all(root_); }

    auto write(std::string const& name, std::string const& text) const -> fs::path {
        fs::path const file = root_ / name;
        fs::create_directories(file.parent_path());
        std::ofstream{file, std::ios::binary} << text;
        return file;
    }
    [[nodiscard]] auto path() const -> fs::path const& { return root_; }

private:
    fs::path root_;
};

auto read(std::vector<fs::path> const& paths, gpt::corpus::options chosen = {.context = 1}) -> gpt::corpus {
    return gpt::corpus{paths, chosen};
}

auto text_of(std::span<std::uint8_t const> bytes) -> std::string { return {bytes.begin(), bytes.end()}; }

auto complaint(std::vector<fs::path> const& paths, gpt::corpus::options chosen = {}) -> std::string {
    try {
        read(paths, chosen);
    } catch (copipe::error const& failure) {
        return failure.what();
    }
    return "";
}

} // namespace

TEST_CASE("a folder is read recursively in the order of its paths, whatever the bytes") {
    folder const data;
    data.write("b.txt", std::string{"\0\xff", 2});
    data.write("a/z.txt", "2");
    data.write("a/y/x.txt", "1");
    data.write("c", "");
    data.write("d", "4");
    REQUIRE(text_of(read({data.path()}).bytes()) == std::string{"12\0\xff"
                                                                "4",
                                                                5});
}

TEST_CASE("several paths are read in the order given") {
    folder const data;
    fs::path const last = data.write("1", "zz");
    fs::path const first = data.write("2", "aa");
    REQUIRE(text_of(read({first, last}).bytes()) == "aazz");
}

TEST_CASE("hidden folders and build folders are passed over unless named") {
    folder const data;
    data.write("text", "text");
    data.write(".git/objects/1", "git");
    fs::path const built = data.write("sub/build/made", "made");
    REQUIRE(text_of(read({data.path()}).bytes()) == "text");
    REQUIRE(text_of(read({built.parent_path()}).bytes()) == "made");
}

TEST_CASE("the last tenth is for validation, and at least one window") {
    folder const data;
    std::string const text(1000, 'x');
    fs::path const file = data.write("text", text);
    REQUIRE(read({file}, {.context = 64}).validation().text.size() == 100);
    REQUIRE(read({file}, {.context = 64}).training().text.size() == 900);
    REQUIRE(read({file}, {.context = 199}).validation().text.size() == 200);
    REQUIRE(read({file}, {.context = 64, .validation_share = 0.25}).validation().text.size() == 250);
}

TEST_CASE("a target is the byte that follows its input, and windows stay within their part") {
    folder const data;
    std::string text;
    for (int i = 0; i < 200; ++i) text.push_back(static_cast<char>(i));
    auto const corpus = read({data.write("text", text)}, {.context = 5, .seed = 3});
    std::array<std::int32_t, 15> input{};
    std::array<std::int32_t, 15> target{};
    std::set<std::int32_t> first_bytes;
    for (std::uint64_t index = 0; index < 1000; ++index) {
        corpus.training().sample(index, 3, input.data(), target.data());
        for (std::size_t i = 0; i < input.size(); ++i) {
            REQUIRE(target[i] == input[i] + 1);
            REQUIRE((i % 5 == 0 || input[i] == input[i - 1] + 1));
            REQUIRE(target[i] < 180);
        }
        first_bytes.insert({input[0], input[5], input[10]});
    }
    REQUIRE(first_bytes.size() == 175);
    REQUIRE(*first_bytes.begin() == 0);
    corpus.validation().sample(0, 3, input.data(), target.data());
    for (std::int32_t const byte : input) REQUIRE(byte >= 180);
}

TEST_CASE("a micro-batch depends on its number and the seed alone") {
    folder const data;
    std::string text;
    for (int i = 0; i < 5000; ++i) text.push_back(static_cast<char>(i * i % 251));
    fs::path const file = data.write("text", text);
    auto const draw = [&](std::uint64_t seed, std::uint64_t index) {
        std::vector<std::int32_t> input(4 * 16);
        std::vector<std::int32_t> target(4 * 16);
        read({file}, {.context = 16, .seed = seed}).training().sample(index, 4, input.data(), target.data());
        input.insert(input.end(), target.begin(), target.end());
        return input;
    };
    REQUIRE(draw(1, 7) == draw(1, 7));
    REQUIRE(draw(1, 7) != draw(1, 8));
    REQUIRE(draw(1, 7) != draw(2, 7));
}

TEST_CASE("as a dataset, a micro-batch is what its windows sample, and an epoch is the text once") {
    folder const data;
    std::string text;
    for (int i = 0; i < 1000; ++i) text.push_back(static_cast<char>(i * i % 251));
    auto const corpus = read({data.write("text", text)}, {.context = 16});
    gpt::micro_batches const batches{corpus.training(), 2};
    REQUIRE(batches.size() == 900 / 32);
    REQUIRE(gpt::micro_batches{corpus.training(), 1000}.size() == 1);
    copipe::host_array input;
    copipe::host_array target;
    batches.load(41, input, target);
    std::array<std::int32_t, 32> expected_input{};
    std::array<std::int32_t, 32> expected_target{};
    corpus.training().sample(41, 2, expected_input.data(), expected_target.data());
    for (copipe::host_array const* each : {&input, &target}) {
        REQUIRE(each->sizes() == copipe::extents{2, 16});
        REQUIRE(each->type() == copipe::dtype::i32);
    }
    REQUIRE(std::equal(expected_input.begin(), expected_input.end(), input.data<std::int32_t>()));
    REQUIRE(std::equal(expected_target.begin(), expected_target.end(), target.data<std::int32_t>()));
}

TEST_CASE("a corpus that cannot be trained on is refused in a sentence that names the path") {
    folder const data;
    fs::path const missing = data.path() / "missing";
    REQUIRE(complaint({missing}) == "data '" + missing.string() + "' does not exist: name a file or a folder");
    // That file opens, and has nothing to read at its start.
    CHECK(complaint({"/proc/self/mem"}) == "data '/proc/self/mem' cannot be read: check its permissions");
    fs::path const empty = data.write("empty", "");
    REQUIRE(complaint({empty}) == "data '" + empty.string() + "' is empty: name a file or folder that has text");
    fs::create_directories(data.path() / "nothing");
    REQUIRE_THROWS_AS(read({data.path() / "nothing"}), gpt::corpus_error);
    fs::path const brief = data.write("brief", std::string(19, 'x'));
    REQUIRE(complaint({brief}, {.context = 9}) ==
            "data '" + brief.string() +
                "' gives 19 bytes, too few for training and validation at a context of 9: "
                "add text or shorten the context");
    REQUIRE(complaint({data.write("enough", std::string(20, 'x'))}, {.context = 9}).empty());
    try {
        read({brief, missing});
        FAIL("accepted");
    } catch (gpt::corpus_error const& failure) {
        REQUIRE(failure.path == missing);
    }
}
