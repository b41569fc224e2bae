"""Synthetic traffic: fixed cameras, moving road users, and light and weather that can be turned like a knob."""

from cahqp.scenes.conditions import Conditions
from cahqp.scenes.recording import Recording, SceneObject
from cahqp.scenes.road_users import CLASSES
from cahqp.scenes.write import scenes, write_scenes

__all__ = ["CLASSES", "Conditions", "Recording", "SceneObject", "scenes", "write_scenes"]
