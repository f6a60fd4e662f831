import subprocess, sys, os, pytest
from capret_jax.retrieval.storage import load_index
@pytest.mark.parametrize("how", ["module", "console"])
def test_processes(model_dir, tmp_path, how):
    script = tmp_path / "capret-build-index"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom capret_jax.commands.build_index import cli\nif __name__ == '__main__':\n    sys.exit(cli())\n")
    script.chmod(0o755)
    command = [sys.executable, "-m", "capret_jax.commands.build_index"] if how == "module" else [str(script)]
    cwd = "/work/main" if how == "module" else str(tmp_path)
    done = subprocess.run([*command, f"--model={model_dir}", "--kind=exact", f"--out={tmp_path}/ix", "--processes=2", "--shard_size=6"], capture_output=True, text=True, timeout=300, cwd=cwd)
    print(done.stdout, done.stderr[-500:])
    assert done.returncode == 0, done.stderr
    assert "still missing" in done.stdout and len(load_index(tmp_path / "ix"))
def test_help(tmp_path):
    for m in ("commands.serve", "serve.app", "commands.build_index"):
        done = subprocess.run([sys.executable, "-m", f"capret_jax.{m}", "--help"], capture_output=True, text=True, cwd="/work/main")
        print(done.stdout[:1500], done.stderr[-300:])
    script = tmp_path / "capret-serve"
    script.write_text("import sys\nfrom capret_jax.commands.serve import cli\nif __name__ == '__main__':\n    sys.exit(cli())\n")
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, cwd="/tmp")
    print(done.stdout[:600], done.stderr[-300:])
    assert "--max_waiting" in done.stdout
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd="/tmp")
    assert done.returncode == 2 and "model" in done.stderr
