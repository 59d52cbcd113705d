// Two queue pairs of one device, written against the real header: its inline functions and macros meet the library.
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what) do { if (!(what)) { printf("line %d: %s\n", __LINE__, #what); return 1; } } while (0)

static struct ibv_qp *pair(struct ibv_pd *pd, struct ibv_cq *cq) {
  struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_UC,
    .cap = {.max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1}};
  return ibv_create_qp(pd, &init);
}

static int join(struct ibv_qp *qp, uint32_t other, union ibv_gid gid) {
  struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_LOCAL_WRITE};
  struct ibv_qp_attr rtr = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = other, .rq_psn = 5,
    .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = gid, .sgid_index = 1, .hop_limit = 1}}};
  struct ibv_qp_attr rts = {.qp_state = IBV_QPS_RTS, .sq_psn = 5};
  return ibv_modify_qp(qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) ||
    ibv_modify_qp(qp, &rtr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN) ||
    ibv_modify_qp(qp, &rts, IBV_QP_STATE | IBV_QP_SQ_PSN);
}

int main(void) {
  int count = 0;
  struct ibv_device **list = ibv_get_device_list(&count);
  CHECK(list && count == 1 && !strcmp(ibv_get_device_name(list[0]), "rxe0") && !strcmp(list[0]->name, "rxe0"));
  struct ibv_context *context = ibv_open_device(list[0]);
  ibv_free_device_list(list);
  struct ibv_port_attr port;
  CHECK(ibv_query_port(context, 1, &port) == 0 && port.state == IBV_PORT_ACTIVE && port.active_mtu == IBV_MTU_1024);
  CHECK(port.link_layer == IBV_LINK_LAYER_ETHERNET && port.gid_tbl_len == 8);
  struct ibv_device_attr device;
  CHECK(ibv_query_device(context, &device) == 0 && device.phys_port_cnt == 1 && device.max_sge == 4);
  union ibv_gid gid;
  CHECK(ibv_query_gid(context, 1, 1, &gid) == 0 && gid.raw[10] == 0xff && gid.raw[12] == 10);
  struct ibv_pd *pd = ibv_alloc_pd(context);
  struct ibv_cq *cq = ibv_create_cq(context, 16, NULL, NULL, 0);
  char *buffer = aligned_alloc(16384, 16384);
  struct ibv_mr *mr = ibv_reg_mr(pd, buffer, 16384, IBV_ACCESS_LOCAL_WRITE);
  CHECK(pd && cq && mr && mr->addr == buffer && mr->length == 16384);
  struct ibv_qp *one = pair(pd, cq), *two = pair(pd, cq);
  CHECK(one && two && one->qp_num != two->qp_num && one->pd == pd && one->qp_type == IBV_QPT_UC);
  CHECK(!join(one, two->qp_num, gid) && !join(two, one->qp_num, gid) && one->state == IBV_QPS_RTS);
  strcpy(buffer, "a message");
  struct ibv_sge from = {(uintptr_t)buffer, 10, mr->lkey}, to = {(uintptr_t)buffer + 4096, 64, mr->lkey};
  struct ibv_recv_wr recv = {.wr_id = 1, .sg_list = &to, .num_sge = 1}, *bad_recv;
  struct ibv_send_wr send = {.wr_id = 2, .sg_list = &from, .num_sge = 1, .opcode = IBV_WR_SEND,
    .send_flags = IBV_SEND_SIGNALED}, *bad_send;
  CHECK(ibv_post_recv(two, &recv, &bad_recv) == 0 && ibv_post_send(one, &send, &bad_send) == 0);
  struct ibv_wc wc[4];
  int got = 0;
  while (got < 2) got += ibv_poll_cq(cq, 4 - got, wc + got);
  for (int i = 0; i < 2; i++) {
    CHECK(wc[i].status == IBV_WC_SUCCESS && !strcmp(ibv_wc_status_str(wc[i].status), "success"));
    CHECK(wc[i].qp_num == (wc[i].wr_id == 1 ? two : one)->qp_num);
    CHECK(wc[i].opcode == (wc[i].wr_id == 1 ? IBV_WC_RECV : IBV_WC_SEND));
    CHECK(wc[i].wr_id == 2 || wc[i].byte_len == 10);
  }
  CHECK(!strcmp(buffer + 4096, "a message"));
  struct ibv_qp_attr attr;
  struct ibv_qp_init_attr init;
  CHECK(ibv_query_qp(one, &attr, IBV_QP_CAP, &init) == 0 && attr.cap.max_send_wr == 8 && init.send_cq == cq);
  CHECK(attr.dest_qp_num == two->qp_num && attr.sq_psn == 5 && attr.port_num == 1);
  CHECK(!ibv_destroy_qp(one) && !ibv_destroy_qp(two) && !ibv_destroy_cq(cq) && !ibv_dereg_mr(mr));
  CHECK(!ibv_dealloc_pd(pd) && !ibv_close_device(context));
  printf("done\n");
  return 0;
}
