"""The one training room: whatever network is trained here is trained by the same loop.

A network brings three things, as a `Task`: its batches (`steps`), its loss (`loss`), and how far it is and how fast it
learns (`share`, `rate`); it may tell numbers of what it was not trained on (`held_out`). All else is here:

    job ──train(rank function, conf, workers)──▶ launch    processes of Ray Train, their progress, their facts
                                                   │
    rank function(conf, report) ──started(conf)──▶ launch  threads, memory, `Ranks`, device
         │  reads its share of the Parquet files           store      files of a rank, lists as flat arrays on disk
         │  makes a module, an optimizer                   engine     `Engine`: PlainEngine or DeepSpeedEngine
         ▼
    Training(engine, task, …).run()                        loop       steps, held-out loss, patience, resume
         │   every pause: a line of the log                log        `metrics.jsonl`, curves
         │   every so often: a checkpoint                  checkpoints  aside, one rename, other numbers of ranks
         ▼
    keep() whenever the weights are now the result         artefacts  a finished folder under the hash of its files

Rules that hold for every network:

* A step is read by all ranks together; its gradient is the mean over the step's batches and over the ranks.
* What is drawn depends on the seed and on the `Place` in the data alone, and the order of the data on their content
  alone. So the same seed gives the same weights, and a training that was killed goes on as if it had not been.
* Training pauses every so many steps, or at the end of each epoch. There, and only there, the ranks exchange losses,
  the held-out loss is taken, the log gets its line, and a checkpoint may be written.
* With `patience` the weights of the lowest held-out loss are the result; without, the last ones are.

Files of a training's folder, which all ranks share: `metrics.jsonl`, `checkpoints/step-N/`, `training.json` (facts,
written last). This room knows no Spark, no text and no kind of network.
"""
