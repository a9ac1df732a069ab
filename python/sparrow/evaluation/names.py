"""The tables' names, and what each shows; the command line's help reads them without importing torch."""

TABLES = {
    "main": "tau, speed and losslessness of every system",
    "length": "tau over the visual length",
    "ablation": "tau with and without MTP, IVSB and VATA",
    "stages": "where the time goes, and what a round costs in plain steps",
    "trees": "tau and acceptance by depth of chains and trees",
    "options": "tau of every training option beside the paper's recipe",
    "imported": "tau of the kinds that `sparrow import` makes, as trained here, with and without VATA",
    "layer_cut": "where in its layers the target takes the video in",
    "watch": "whether the target watches: the true, another and a black video",
}
