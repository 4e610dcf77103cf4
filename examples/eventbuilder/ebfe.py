import numpy as np
from phloem import EQ_EB, EQ_POLLED, Equipment, Frontend

class Ebfe(Frontend):
    name = "ebfe"
    equipment = [Equipment("Trigger%02d", event_id=1, trigger_mask=0xFFFF, buffer="BUF%02d", type=EQ_POLLED | EQ_EB, format="MIDAS")]

    def poll(self) -> bool:
        return True                      # ask the hardware whether there is an event

    def read(self, event) -> None:
        event.bank(f"AD{self.index:02d}", np.random.poisson(100, 32).astype("u2"))    # the dtype chooses the TID
