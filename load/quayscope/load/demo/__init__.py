"""The main job on embedded defaults: every part as a real process, one workload, one report."""
