"""Synthetic traffic: fixed cameras, moving road users, adjustable light and weather."""

from cahqp.scenes.conditions import Conditions
from cahqp.scenes.recording import Recording, SceneObject
from cahqp.scenes.road_users import CLASSES

__all__ = ["CLASSES", "Conditions", "Recording", "SceneObject"]
