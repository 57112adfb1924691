def test_x(workshop, monkeypatch):
    from axpo.cli.main import main
    import json
    print(*(json.loads(l)["train/loss"] for l in (workshop/"sft/metrics.jsonl").read_text().splitlines()[::6]))
    print((workshop/"sft/metrics.jsonl").read_text().splitlines()[-1][:900])
    monkeypatch.chdir(workshop)
    print(main(["train","config.toml"]))
    print((workshop/"runs/run/rollouts/train-000001.jsonl").read_text()[:3000])
