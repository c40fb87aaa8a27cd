from distft.runtime.command import run_command
from launch.command import main

run_command(main)
