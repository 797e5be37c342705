"""Launch scripts are valid in the languages of their launchers, and contain the whole command."""

import ast
import json
import subprocess

import pytest
import yaml

from bigmodel.cli.main import main

COMMAND = ["--", "study", "--config=configs/quickstart.py", "--workdir=gs://bucket/it's here", "--restarts=5"]


def recipe(capsys, place, topology):
  assert main(["launch", f"--on={place}", f"--topology={topology}", "--dry-run", "--name=ladder", *COMMAND]) == 0
  return capsys.readouterr().out


@pytest.mark.parametrize(
  ("place", "topology"),
  [("tpu-vm", "v5e:2x2"), ("tpu-vm", "v5p:4x4x4"), ("slurm", "h100:16"), ("slurm", "h100:4")],
)
def test_shell_recipes_parse_and_run_the_command(capsys, tmp_path, place, topology):
  text = recipe(capsys, place, topology)
  assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
  # Stub launchers record the command; it must be the given one.
  for name in ("gcloud", "srun", "scontrol"):
    script = tmp_path / name
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/said\n')
    script.chmod(0o755)
  text = text.replace("cd .", f"cd {tmp_path}")
  subprocess.run(["bash"], input=text, text=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
  printed = (tmp_path / "said").read_text()
  if place == "slurm":
    assert "--workdir=gs://bucket/it's here\n" in printed
    assert f"--nodes={2 if topology == 'h100:16' else 1}" in text
  else:
    last = printed.splitlines()[-1].removeprefix("--command=")
    assert subprocess.run(["bash", "-n"], input=last, text=True, check=False).returncode == 0
    assert "--workdir=gs://bucket/it" in last
    assert "--worker=all" in printed
    if topology == "v5p:4x4x4":
      assert "--accelerator-type=v5p-128" in text  # v5p is named by its cores


def test_gke_recipe_is_a_jobset_of_all_hosts(capsys):
  job = yaml.safe_load(recipe(capsys, "gke", "v5p:4x4x4"))
  assert job["kind"] == "JobSet"
  spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] == 16
  pod = spec["template"]["spec"]
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
  assert pod["containers"][0]["args"] == COMMAND[1:]
  assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == 4
  assert job["spec"]["failurePolicy"]["maxRestarts"] == 5


@pytest.mark.parametrize(("topology", "hosts"), [("h100:16", 2), ("v5e:4x4", 4)])
def test_ray_recipe_is_python_with_the_command_in_it(capsys, topology, hosts):
  tree = ast.parse(recipe(capsys, "ray", topology))
  values = {t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
  assert ast.literal_eval(values["ARGUMENTS"]) == COMMAND[1:]
  assert ast.literal_eval(values["HOSTS"]) == hosts


def test_a_launcher_does_not_write_to_the_standard_output_of_json(capfd, monkeypatch, tmp_path):
  (tmp_path / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 7\n")
  (tmp_path / "sbatch").chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
  assert main(["launch", "--on=slurm", "--topology=h100:8", *COMMAND]) == 0
  assert capfd.readouterr().out == "Submitted batch job 7\n"
  assert main(["launch", "--on=slurm", "--topology=h100:8", "--json", *COMMAND]) == 0
  printed = capfd.readouterr()
  assert json.loads(printed.out)["started"]
  assert printed.err == "Submitted batch job 7\n"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--on=gke", "--topology=h100:8", "--dry-run", *COMMAND], "h100:8 is not a slice of TPUs"),
    (["--on=slurm", "--topology=h100", "--dry-run", *COMMAND], "'h100' is not KIND:SHAPE"),
    (["--on=slurm", "--topology=h10:8", "--dry-run", *COMMAND], "did you mean 'h100'"),
    (["--on=slurm", "--topology=v5p:4x4", "--dry-run", *COMMAND], "v5p has 3 dimensions"),
    (["--on=slurm", "--topology=h100:8"], "the command is missing"),
    (["--on=slurm", "--topology=h100:8", *COMMAND], "no sbatch here; --dry-run prints the recipe"),
  ],
)
def test_commands_that_cannot_be_launched_are_refused(capsys, monkeypatch, arguments, message):
  monkeypatch.setenv("PATH", "")
  assert main(["launch", *arguments]) == 2
  assert message in capsys.readouterr().err
