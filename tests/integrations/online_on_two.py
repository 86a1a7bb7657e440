"""One process of several that train with TRL, for test_trl.py. No tests here.

torchrun --nproc_per_node 2 online_on_two.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

from safetensors.torch import save_file
from test_trl import GROUP, Rewarder, make_online

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
rewarder = Rewarder()
online = make_online(
    folder / rank,
    rewarder=rewarder,
    per_device_train_batch_size=GROUP,
    num_iterations=3,
    max_steps=3,
    baseline=-0.2,
)
online.train()
(folder / f"rows-{rank}.json").write_text(json.dumps(rewarder.rows))
model = online.accelerator.unwrap_model(online.model)
save_file(
    {name: p.detach() for name, p in model.named_parameters()}, folder / f"{rank}.safetensors"
)
