"""Synthetic traffic: fixed cameras, moving road users, and light and weather that can be turned like a knob."""

from cahqp.data.scenes.conditions import Conditions
from cahqp.data.scenes.recording import Recording, SceneObject
from cahqp.data.scenes.road_users import CLASSES
from cahqp.data.scenes.write import scenes, write_scenes

__all__ = ["CLASSES", "Conditions", "Recording", "SceneObject", "scenes", "write_scenes"]
