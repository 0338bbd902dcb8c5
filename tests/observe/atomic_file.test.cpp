// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/observe/atomic_file.hpp"
#include "says.hpp"
#include "temporary_folder.hpp"

using namespace copipe;

TEST_CASE("a file appears under its name only when it is committed") {
    temporary_folder const folder;
    std::string const path = folder / "result";
    {
        atomic_file file{path};
        file.append("first ");
        file.append("second");
        CHECK_FALSE(std::filesystem::exists(path));
        file.commit();
        CHECK(contents(path) == "first second");
    }
    CHECK(contents(path) == "first second");
    CHECK(folder.entries() == 1);
}

TEST_CASE("a file that is not committed leaves the older one as it was, and nothing else") {
    temporary_folder const folder;
    put_contents(folder / "result", "older");
    try {
        atomic_file file{folder / "result"};
        file.append("newer");
        throw 1;
    } catch (int) {}
    CHECK(contents(folder / "result") == "older");
    CHECK(folder.entries() == 1);
}

TEST_CASE("parts of a file can be written in any order") {
    temporary_folder const folder;
    atomic_file file{folder / "result"};
    std::string const tail = "tail", head = "head";
    file.write_at(tail.data(), tail.size(), 4);
    file.write_at(head.data(), head.size(), 0);
    file.commit();
    CHECK(contents(folder / "result") == "headtail");
}

TEST_CASE("two writers of one path do not mix: the later commit wins") {
    temporary_folder const folder;
    atomic_file first{folder / "result"}, second{folder / "result"};
    first.append("aaaaaaaa");
    second.append("bb");
    second.commit();
    first.commit();
    CHECK(contents(folder / "result") == "aaaaaaaa");
    CHECK(folder.entries() == 1);
}

TEST_CASE("a link stays a link to the file that is replaced") {
    temporary_folder const folder;
    put_contents(folder / "real", "older");
    std::filesystem::create_symlink("real", folder / "link");
    atomic_file file{folder / "link"};
    file.append("newer");
    file.commit();
    CHECK(std::filesystem::is_symlink(folder / "link"));
    CHECK(contents(folder / "real") == "newer");
}

TEST_CASE("a path that cannot be written is refused with its reason before anything is written") {
    temporary_folder const folder;
    put_contents(folder / "file", "");
    CHECK_THROWS_WITH(require_writable(folder / "missing/result"),
                      says("missing/result") && says("no such file or folder"));
    CHECK_THROWS_WITH(require_writable(folder / "file/result"), says("file where a folder must be"));
    CHECK_THROWS_WITH(require_writable(folder.path()), says("it is a folder"));
    CHECK_THROWS_WITH(require_writable("/dev/null"), says("not a regular file"));
    CHECK_NOTHROW(require_writable(folder / "file"));
    CHECK_NOTHROW(require_writable(folder / "new"));
    CHECK(folder.entries() == 1);
    try {
        require_writable(folder / "missing/result");
    } catch (file_error const& refused) {
        CHECK(refused.file == folder / "missing/result");
        CHECK(refused.reason == std::errc::no_such_file_or_directory);
    }
}

TEST_CASE("a file without write permission is not replaced") {
    if (::geteuid() == 0) return; // the superuser may write everything
    temporary_folder const folder;
    put_contents(folder / "result", "older");
    std::filesystem::permissions(folder / "result", std::filesystem::perms::owner_read);
    CHECK_THROWS_WITH(require_writable(folder / "result"), says("no permission"));
}
