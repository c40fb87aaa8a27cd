from distft.runtime.command import run_command
from distft.train.command import main

run_command(main)
