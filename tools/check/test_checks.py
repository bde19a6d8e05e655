"""The checks pass over the tree, and each of them sees what it is there for."""
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import clang_tidy  # noqa: E402
import files  # noqa: E402
import includes  # noqa: E402
import proto  # noqa: E402
import run_tests  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_includes_follow_the_layers():
    assert includes.violations(ROOT) == []


@pytest.mark.parametrize("path, line", [
    ("engine/core/clock.h", '#include "engine/io/gguf.h"'),
    ("engine/kernels/ops.h", '#include "engine/model/config.h"'),
    ("engine/kernels/ops.h", '#include "engine/core/thread_pool.h"'),
    ("engine/kernels/kernels_avx2.cc", '#include "absl/strings/str_cat.h"'),
    ("engine/kernels/registry.h", '#include "absl/strings/str_cat.h"'),
    ("engine/kernels/ops.h", '#include "cogumi/types.h"'),
    ("engine/model/model.cc", '#include <grpcpp/channel.h>'),
    ("engine/runtime/engine.cc", '#include "services/common/config.h"'),
    ("services/gateway/pipeline.cc", '#include "engine/model/model.h"'),
    ("services/gateway/pipeline.cc", '#include "services/decoder/start.h"'),
    ("services/decoder/start.cc", '#include "tests/support/tiny_model.h"'),
    ("router/lexicon.cc", '#include "cogumi/v1/router.pb.h"'),
    ("services/unheard_of/main.cc", '#include <string>'),
])
def test_a_forbidden_include_is_seen(tmp_path, path, line):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text("#pragma once\n" + line + "\n")
    assert len(includes.violations(tmp_path)) == 1


@pytest.mark.parametrize("path, line", [
    ("engine/kernels/kernels_avx2.cc", '#include "engine/core/half.h"'),
    ("engine/kernels/kernels_avx2.cc", '#include <immintrin.h>'),
    ("engine/kernels/registry.cc", '#include "absl/strings/str_cat.h"'),
    ("engine/model/model.cc", '#include "engine/core/thread_pool.h"'),
])
def test_an_allowed_include_passes(tmp_path, path, line):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")
    assert includes.violations(tmp_path) == []


def test_exceptions_are_used():
    """An exception that nobody needs any more goes."""
    for user, headers in [*includes.EXCEPTIONS.items(), *includes.KERNEL_LIBRARIES.items()]:
        there = ROOT / user
        files_of_it = there.rglob("*.*") if there.is_dir() else [there]
        text = "".join(f.read_text() for f in files_of_it if f.suffix in includes.SOURCES)
        assert all(f'"{header}"' in text or f"<{header}>" in text for header in headers), user


def test_files_keep_the_rules():
    assert files.check(ROOT) == []


@pytest.mark.parametrize("name, text", [
    ("a.cc", "int a;\n" * 801),
    ("a.md", "see /ro" "ot/.cache\n"),
    ("a.sh", "cd /ho" "me/someone\n"),
    ("a.txt", "https://files.python" "hosted.org/x\n"),
    ("a.py", "# TO" "DO later\n"),
    ("a.md", "speed: @" "@SPEED@" "@\n"),
    ("a.py", "x = 1 \n"),
    ("a.py", "x = 1"),
    ("a.cc", "// " + "x" * 98 + "\n"),
])
def test_a_breach_is_seen(name, text):
    assert len(files.breaches(name, text)) == 1


def test_a_header_without_guard_is_seen():
    assert files.header_breaches("a.h", "int a;\n") and not files.header_breaches(
        "a.h", "#pragma once\n")


def test_contracts_have_the_style():
    assert proto.lint() == ""


def test_contracts_break_no_client():
    assert proto.breaking() == ""


@pytest.fixture
def changed_contracts(tmp_path):
    """A copy of the contracts with one line replaced."""
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("*.binpb"))

    def change(name, old, new):
        file = tmp_path / "proto/cogumi/v1" / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        return tmp_path
    return change


def test_a_style_error_is_seen(changed_contracts):
    root = changed_contracts("gateway.proto", "string session_id = 4;", "string SessionId = 4;")
    assert "SessionId" in proto.lint(root)


def test_a_breaking_change_is_seen(changed_contracts):
    root = changed_contracts("gateway.proto", "string session_id = 4;", "string session_id = 40;")
    assert "session_id" in proto.breaking(root)


@pytest.mark.parametrize("script, words", [
    ("echo a finding; exit 1", "a finding"),
    ("echo no configuration >&2; exit 1", "no configuration"),
    ("kill -KILL $$", "exit code -9"),
    ("echo suppressed warnings >&2", ""),
])
def test_clang_tidy_fails_loudly(monkeypatch, tmp_path, script, words):
    fake = tmp_path / "clang-tidy"
    fake.write_text(f"#!/bin/bash\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = clang_tidy.tidy("engine/core/clock.cc")[1]
    assert words in found and bool(found) == bool(words)


def test_metrics_of_the_documentation_exist():
    code = "".join(file.read_text() for file in (ROOT / "services").rglob("*.cc"))
    for name in re.findall(r"`((?:cogumi|vllm)[_:][a-z0-9_]+)`",
                           (ROOT / "docs/operations.md").read_text()):
        assert name.endswith("_") or f'"{name}"' in code, name


def test_every_shell_script_parses():
    scripts = [ROOT / name for name in ("run", "test", ".ci/run", "tools/setup/lib.sh")]
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_package_list_names_groups_and_packages():
    for line in (ROOT / "tools/setup/debian-packages.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        group, package = line.split()
        assert group in {"build", "test", "analysis"} and package


@pytest.mark.parametrize("arguments", [["--bogus"], ["bogus"], ["-R"]])
def test_wrong_arguments_of_the_test_command_are_refused(arguments):
    result = subprocess.run([str(ROOT / "test"), *arguments], capture_output=True, text=True)
    assert result.returncode != 0 and "then:" in result.stderr


def test_a_pattern_without_a_match_is_an_error():
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/check/run_tests.py"), "lint", "-R", "no_such_test_name"],
        capture_output=True, text=True)
    assert result.returncode != 0 and "no test matches" in result.stderr


def test_google_test_reports_are_counted_by_case(tmp_path):
    report = tmp_path / "report.xml"  # as GoogleTest 1.12 writes it
    report.write_text("""<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="4"><testsuite name="S" tests="4">
<testcase name="a" status="run" result="completed" classname="S" />
<testcase name="b" status="run" result="completed" classname="S">
<failure message="x.cc:2&#x0A;x" type=""><![CDATA[x.cc:2
x]]></failure></testcase>
<testcase name="c" status="run" result="skipped" classname="S">
<skipped message="x.cc:3&#x0A;no AVX &lt;5&gt;"><![CDATA[x.cc:3
no AVX <5>]]></skipped></testcase>
<testcase name="DISABLED_d" status="notrun" result="suppressed" classname="S" />
</testsuite></testsuites>""")
    outcome = run_tests.read_junit(report, "", ".")
    assert (outcome.passed, outcome.failed, outcome.skipped) == (
        1, ["S.b"], [("S.c", "no AVX <5>")])
    report.write_text("<testsuites>")
    assert len(run_tests.read_junit(report, "", ".").failed) == 1
