"""Commands that read the files of the fuzz targets, as they are typed."""

_DRIFT = "--window=8 --block=2 --permutations=199 --confirm=1"
COMMANDS = {
    "evaluate": (
        "labelled",
        "evaluate --weights m={case}/model.safetensors --frames x={case}/labels.json --output={out}/o --resamples=10",
    ),
    "detect": ("package", "detect --weights={case}/package --frames={case}/frames --output={out}/o"),
    "verify": ("registry", "registry verify --registry={case}/registry"),
    "list": ("registry", "registry list --registry={case}/registry"),
    "show": ("registry", "registry show --registry={case}/registry"),
    "rollback": ("registry", "registry rollback --registry={case}/registry"),
    "promote": ("registry", "registry promote --registry={case}/registry --package={case}/p3 --reason=x"),
    "push": ("registry", "registry push --registry={case}/registry --to=file://{out}/pushed"),
    "publish": (
        "evidence",
        "publish --candidate={case}/new.safetensors --running={case}/old.safetensors --metrics={case}/metrics.json "
        "--output={out}/o",
    ),
    "promote-decision": (
        "evidence",
        "registry promote --registry={case}/registry --package={case}/new --decision={case}/decision.json",
    ),
    "to-yolo": ("coco", "reformat --labels={case}/labels.json --to=yolo --output={out}/o"),
    "to-coco": ("coco", "reformat --labels={case}/labels.json --to=coco --output={out}/o"),
    **{
        f"from-{kind}": (
            kind,
            f"reformat --labels={{case}}/{kind} --source={kind} --to=coco --like={{case}}/sent/labels.json "
            "--output={out}/o",
        )
        for kind in ("yolo", "cvat", "label-studio")
    },
    "replay": (
        "replay-buffer",
        "replay --labels={case}/night/labels.json --features={case}/night --name=night --capacity=8 --share=0.5 "
        "--buffer={case}/buffer --output={out}/o",
    ),
    "drift": ("signals", f"drift --frames {{case}}/night --reference day={{case}}/day {_DRIFT} --output={{out}}/o"),
    "sample": ("signals", "sample --features {case}/night --budget=3 --output={out}/o"),
    "fetch": ("cameras", "fetch --frames={case} --after {case}/before --output={out}/o"),
    "status": ("plans", "cycle status --plan={case}/plan.yaml"),
    "status-rounds": ("plans", "cycle status --plan={case}/rounds.yaml"),
}
"""Set of files and command line by name of the command."""
