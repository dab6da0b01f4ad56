"""Drivers of the services that hold KEKs. One file and one SDK import per service."""
